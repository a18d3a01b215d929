# SPDX-License-Identifier: MIT
#
# The options of NixOS that the project's modules define or read, as nixos/lib/systemd-unit-options.nix and others have
# them: an option that is not here is one that the modules may not use before it is.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  with' = default: type: mkOption { inherit default type; };
  names = with' [ ] (types.listOf (types.strMatching "[a-zA-Z0-9@%:_.\\-]+[.](service|target|socket|path|mount)"));
  value = types.oneOf [
    types.bool
    types.int
    types.str
    (types.listOf types.str)
  ];

  unit = {
    options = {
      description = with' "" types.str;
      after = names;
      before = names;
      bindsTo = names;
      partOf = names;
      requires = names;
      wants = names;
      wantedBy = names;
      unitConfig = with' { } (types.attrsOf value);
    };
  };
  service = {
    options = unit.options // {
      enable = with' true types.bool;
      overrideStrategy = with' "asDropinIfExists" (
        types.enum [
          "asDropin"
          "asDropinIfExists"
        ]
      );
      path = with' [ ] (types.listOf types.raw);
      reloadTriggers = with' [ ] (types.listOf types.raw);
      restartIfChanged = with' true types.bool;
      restartTriggers = with' [ ] (types.listOf types.raw);
      script = with' "" types.lines;
      serviceConfig = with' { } (types.attrsOf value);
    };
  };
  user = {
    options = {
      description = with' "" types.str;
      group = mkOption { type = types.str; };
      isSystemUser = with' false types.bool;
    };
  };
  file = {
    options = {
      source = mkOption { type = types.path; };
      text = with' null (types.nullOr types.lines);
    };
  };
  tmpfile = {
    options = {
      user = with' "-" types.str;
      group = with' "-" types.str;
      mode = with' "-" types.str;
    };
  };
  mount = {
    options = {
      where = mkOption { type = types.str; };
      what = mkOption { type = types.str; };
      options = with' "" types.str;
    };
  };
in
{
  options = {
    assertions = with' [ ] (types.listOf types.raw);
    warnings = with' [ ] (types.listOf types.str);
    system.stateVersion = with' "26.05" types.str;
    systemd.tmpfiles.rules = with' [ ] (types.listOf types.str);
    # nixos/modules/system/boot/systemd/tmpfiles.nix
    systemd.tmpfiles.settings = with' { } (
      types.attrsOf (types.attrsOf (types.attrsOf (types.submodule tmpfile)))
    );
    networking.hostName = with' "nixos" types.str;
    environment.etc = with' { } (types.attrsOf (types.submodule file));
    environment.systemPackages = with' [ ] (types.listOf types.package);
    services.dbus.packages = with' [ ] (types.listOf types.path);
    security.polkit.enable = with' false types.bool;
    users.users = with' { } (types.attrsOf (types.submodule user));
    users.groups = with' { } (types.attrsOf (types.submodule { }));
    system.checks = with' [ ] (types.listOf types.package);
    systemd.package = with' pkgs.systemd types.package;
    systemd.packages = with' [ ] (types.listOf types.package);
    systemd.services = with' { } (types.attrsOf (types.submodule service));
    systemd.sockets = with' { } (
      types.attrsOf (
        types.submodule {
          options = unit.options // {
            socketConfig = with' { } (types.attrsOf value);
          };
        }
      )
    );
    systemd.paths = with' { } (
      types.attrsOf (
        types.submodule {
          options = unit.options // {
            pathConfig = with' { } (types.attrsOf value);
          };
        }
      )
    );
    boot = {
      blacklistedKernelModules = with' [ ] (types.listOf types.str);
      kernelModules = with' [ ] (types.listOf types.str);
      kernelParams = with' [ ] (types.listOf types.str);
      initrd = {
        availableKernelModules = with' [ ] (types.listOf types.str);
        kernelModules = with' [ ] (types.listOf types.str);
        systemd.enable = with' false types.bool;
        systemd.mounts = with' [ ] (types.listOf (types.submodule mount));
      };
    };
  };
}
