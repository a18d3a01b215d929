# SPDX-License-Identifier: MIT
#
# services.credferry.unprivileged: the agent as a user of its own, to whom polkit grants what the configuration says.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  cfg = config.services.credferry;
  user = "credferry";
  key = "/var/lib/systemd/credential.secret";

  units = import ./units.nix { inherit lib; };
  dropIn = (units.parse (builtins.readFile ../systemd/credferry-user.conf)).Service;
  service = {
    requires = [ "credferry-key.service" ];
    after = [ "credferry-key.service" ];
    serviceConfig = units.simplify dropIn;
  };

  # The agent's own verb prints the rule, so that it grants exactly what the agent asks for.
  rule = pkgs.runCommand "credferry-polkit.rules" { nativeBuildInputs = [ config.systemd.package ]; } ''
    ${lib.getExe cfg.package} polkit-rule --user ${user} --config ${config.environment.etc."credferry/config.toml".source} >$out
  '';
in
{
  options.services.credferry.unprivileged = mkOption {
    type = types.bool;
    default = false;
    description = ''
      Whether the agent runs as the user `${user}`, with no capability but CAP_DAC_READ_SEARCH. polkit lets it restart
      the units of the configured VMs where they run, and start them where they have failed. SECURITY.md says what a
      job's mode leaves beyond that.
    '';
  };

  config = mkIf (cfg.enable && cfg.unprivileged) {
    assertions = [
      {
        assertion = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
        message = ''
          services.credferry.unprivileged: polkit's rule is made by the agent's own program, which cannot run where the
          system is built. Build it on a host of its platform.
        '';
      }
    ];

    users.users.${user} = {
      isSystemUser = true;
      group = user;
      description = "Ferries secrets into microVMs";
    };
    users.groups.${user} = { };

    security.polkit.enable = true;
    environment.etc."polkit-1/rules.d/50-credferry.rules".source = rule;

    systemd.services = {
      credferry = service;
      credferry-seal = service;
      "credferry-seal@" = service;
      # polkit does not notice when the link to a rule gets another target.
      polkit.restartTriggers = [ rule ];
      # Without root the agent cannot make the key. An existing key stays: systemd-creds would remove another machine's.
      credferry-key = {
        description = "Make the host's credential key";
        unitConfig = {
          ConditionPathExists = "!${key}";
          RequiresMountsFor = builtins.dirOf key;
        };
        serviceConfig = {
          Type = "oneshot";
          ExecStart = "${lib.getExe' config.systemd.package "systemd-creds"} setup";
        };
      };
    };
  };
}
