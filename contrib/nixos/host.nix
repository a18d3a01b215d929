# SPDX-License-Identifier: MIT
#
# services.credferry: the agent on a host, and what each VM needs to take its credentials.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    mkOptionDefault
    types
    ;

  cfg = config.services.credferry;
  toml = pkgs.formats.toml { };
  units = import ./units.nix { inherit lib; };
  guests = import ./guests.nix {
    inherit lib;
    host = config;
  };

  sources = import ./sources.nix { inherit lib config options; };
  rollout = import ./rollout.nix { inherit lib toml; };

  # Units that publish secrets where no activation script does: agenix, and clan's backends with userborn or sysusers.
  # That of sops-nix is in the unit files. One that does not exist orders nothing.
  producers = [
    "agenix-install-secrets.service"
    "age-decrypt-secrets.service"
    "pass-install-secrets.service"
  ];

  unitFile = units.service {
    agent = lib.getExe cfg.package;
    launcher = lib.getExe' cfg.package "credferry-launch";
    systemctl = lib.getExe' config.systemd.package "systemctl";
    inherit (pkgs) coreutils;
  };

  unitName = vm: lib.removeSuffix ".service" vm.unit;

  # Only the user of the VM's unit can connect to the VM's vsock socket. A unit without User= runs as root, and so does a
  # push with an empty one. Nothing is known of a unit that this configuration does not define.
  identity =
    vm:
    let
      name = unitName vm;
      template = builtins.match "([^@]+@).+" name;
      settings = unit: (config.systemd.services.${unit} or { }).serviceConfig or { };
      all = lib.optionalAttrs (template != null) (settings (builtins.head template)) // settings name;
    in
    lib.optionalAttrs (all ? User || all ? ExecStart) {
      User = all.User or "";
      Group = all.Group or "";
    };

  # Where node-exporter's collector reads, if the agent is to write there.
  metrics =
    let
      file = cfg.settings.metrics.textfile or null;
    in
    if file == null || lib.hasPrefix "/run/credferry/" file then null else builtins.dirOf file;

  # VMs whose guests get their key from the host.
  keyed = lib.filterAttrs (_: vm: vm.guestMachineId != null) cfg.vms;

  vmDirectory = config.microvm.stateDir or null;

  # A table of the agent's configuration file; there is no null in TOML.
  table = lib.filterAttrs (_: value: value != null);
  withoutNull =
    settings:
    builtins.mapAttrs (_: value: if builtins.isAttrs value && !(value ? outPath) then withoutNull value else value) (
      table settings
    );

  # Whether its unit is that of a VM of microvm.nix.
  isVm = name: vm: vm.unit == "microvm@${name}.service";

  vmTable =
    vm:
    vm.settings
    // table {
      guest_machine_id = vm.guestMachineId;
      fleet_group = vm.fleetGroup;
    }
    // rollout.keys vm
    // {
      inherit (vm) unit channel live pairs;
      guest_systemd = vm.guestSystemd;
      guest_key = vm.guestKey;
      plaintext_in_argv = vm.plaintextInArgv;
      allow_names = vm.allowNames;
      credentials = builtins.mapAttrs (
        _: each:
        table {
          inherit (each) secret text seal;
          source = if each.text == null then each.source else null;
          inherit (each) field format;
          trim = if each.trim then true else null;
          max_age_days = each.maxAgeDays;
          required = if each.text == null then each.required else null;
          live = if each.live then null else false;
        }
      ) vm.credentials;
    };

  unchecked = toml.generate "credferry.toml" (withoutNull cfg.settings);

  # The agent's own judgement, at build time; systemd-analyze reads its windows. What it refuses is said with the names
  # of options. Its hints are for the command line and name keys of the file.
  check = ''
    if ! ${lib.getExe cfg.package} check --config ${unchecked} "$@" >/dev/null 2>refused; then
      sed -E -f ${./options.sed} refused >&2
      exit 1
    fi
  '';
  tools.nativeBuildInputs = [ config.systemd.package ];
  checked = pkgs.runCommand "credferry-checked.toml" (tools // { passthru = { inherit unchecked; }; }) ''
    set --
    ${check}
    cp ${unchecked} $out
  '';

  # The launcher's judgement of what VMs that are declared here give cloud-hypervisor. By itself, so that a change of
  # a VM does not reload the agent.
  runners = lib.filterAttrs (_: runner: runner != null) (builtins.mapAttrs (name: _: guests.runner name) cfg.vms);
  judged = pkgs.runCommand "credferry-arguments" tools ''
    set -- ${
      lib.concatStringsSep " " (lib.mapAttrsToList (name: runner: "--runner ${name}=${runner}") runners)
    }
    ${check}
    touch $out
  '';
  canCheck = cfg.checkConfig && pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;

  credential = types.submodule {
    options = {
      secret = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "db/password";
        description = "Name of a secret, relative to the path of its source.";
      };
      source = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "acme-example.org";
        description = ''
          The source that publishes the secret: one of `settings.sources`, or `acme-CERTIFICATE` for the directory of a
          certificate in `security.acme.certs`, `secrets-for-users` of sops-nix, `agenix`. Null means `settings.source`.
        '';
      };
      field = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "db.password";
        description = "Takes this field of the secret, which is a file of JSON, YAML or dotenv, instead of the whole file.";
      };
      format = mkOption {
        type = types.nullOr (
          types.enum [
            "json"
            "yaml"
            "dotenv"
          ]
        );
        default = null;
        description = "What the file with the field is written in. Null means by its name: .json, .yaml, .yml, .env.";
      };
      maxAgeDays = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = "How many days old the value may become before `status`, metrics and doctor say so.";
      };
      trim = mkOption {
        type = types.bool;
        default = false;
        description = "Whether one newline at the end of the value is removed.";
      };
      text = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "A text that is not secret, in place of `secret`. It is in the Nix store, where every user can read it.";
      };
      required = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the VM is refused, and keeps running as it is, if the secret is absent or empty.";
      };
      live = mkOption {
        type = types.bool;
        default = true;
        description = "Whether a change can be pushed to a live VM. False is for what the guest reads only when it boots.";
      };
      seal = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = "Whether this credential is sealed for the guest. Null means as `guestKey` says, and never for a text.";
      };
    };
  };

  vm = types.submodule (
    { name, options, ... }:
    {
      options = {
        isExpectedHere = mkOption {
          type = types.bool;
          internal = true;
          readOnly = true;
          # A configuration that names the unit says by it that the VM is made elsewhere.
          default = options.unit.highestPrio >= (mkOptionDefault { }).priority;
        };
        unit = mkOption {
          type = types.strMatching "[A-Za-z0-9:_.@\\-]+[.]service";
          default = "microvm@${name}.service";
          description = "The VM's unit. It gets a drop-in, and the agent restarts it.";
        };
        channel = mkOption {
          type = types.enum [
            "api"
            "command"
            "directory"
          ];
          default = "api";
          description = ''
            How OEM strings reach cloud-hypervisor: over its API, or in its command line. Every user of the host can read
            the command line, so it is only for values that are sealed for the guest. With `directory`, the unit's own program
            reads `$CREDENTIALS_DIRECTORY/credferry_value.NAME`: a plain service, or a VM of another hypervisor.
          '';
        };
        guestSystemd = mkOption {
          type = types.ints.between 250 9999;
          default = guests.systemd name;
          defaultText = literalExpression "the guest's systemd.package.version, or 252 where the VM is not declared here";
          description = ''
            The lowest version that the guest's systemd may have. Before 257, systemd reads only the first 4,091 bytes of
            all OEM strings, and silently cuts the string at that limit.
          '';
        };
        guestKey = mkOption {
          type = types.bool;
          default = guests.machineId name != null;
          defaultText = literalExpression "the guest's credferry.guestKey.enable, or false where the VM is not declared here";
          description = ''
            Whether secrets are also sealed with the guest's own key. The host makes the key if it has `guestMachineId`.
            Without that, make it with `credferry guest-key create` and install it in the guest.
          '';
        };
        guestMachineId = mkOption {
          type = types.nullOr (types.strMatching "[0-9a-fA-F-]{32,36}");
          default = guests.machineId name;
          defaultText = literalExpression "the guest's microvm.machineId if it has credferry.guestKey.enable, else null";
          description = ''
            The guest's machine id. With it, the host makes the guest's key and gives it to the guest each time the VM
            starts. The guest needs `credferry.guestKey.enable`, or the share `credferry-key` made in another way.
          '';
        };
        live = mkOption {
          type = types.bool;
          default = guests.isLive name;
          defaultText = literalExpression "the guest's credferry.live.enable, or false where the VM is not declared here";
          description = ''
            Whether the guest takes a rotated value while it runs. It needs the receiver in the guest
            (`credferry.live.enable`) and a vsock (`microvm.vsock.cid`).
          '';
        };
        fleetGroup = mkOption {
          type = types.nullOr (types.strMatching "[A-Za-z0-9.-]{1,64}");
          default = null;
          defaultText = literalExpression "services.credferry.fleet.group";
          description = "The group of the fleet to which the VM belongs.";
        };
        plaintextInArgv = mkOption {
          type = types.bool;
          default = false;
          description = "Allows the command channel to show unsealed secrets to everyone on the host.";
        };
        allowNames = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "ssh.authorized_keys.root" ];
          description = "Credentials that give power over the guest and are allowed. Others are refused.";
        };
        pairs = mkOption {
          type = types.listOf (types.listOf types.str);
          default = [ ];
          example = [
            [
              "TLS_CERT"
              "TLS_KEY"
            ]
          ];
          description = "Credentials that rotate together: a certificate, and its private key.";
        };
        credentials = mkOption {
          type = types.attrsOf credential;
          default = { };
          example = literalExpression ''{ API_KEY.secret = "api-key"; ENVIRONMENT.text = "test"; }'';
          description = ''
            What the guest gets, by the name under which its units load it. Those of
            `microvm.cloud-hypervisor.oemSecretsFiles` in VMs that are declared on this host are here already.
          '';
        };
        settings = mkOption {
          inherit (toml) type;
          default = { };
          description = "More keys of the VM's table: see docs/configuration.md.";
        };
      }
      // rollout.one;
    }
  );
in
{
  imports = [
    ./assertions.nix
    ./fleet.nix
    ./tpm.nix
    ./unprivileged.nix
  ];

  options.services.credferry = {
    enable = mkEnableOption "the agent that ferries secrets into cloud-hypervisor microVMs";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { launcher = pkgs.callPackage ./launcher.nix { }; };
      defaultText = literalExpression "credferry of this source tree";
      description = "The package with `credferry`.";
    };

    checkConfig = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the build checks the configuration, and the arguments of declared VMs.";
    };

    checkSecrets = mkOption {
      type = types.bool;
      default =
        (options ? sops || options ? age) && (config.clan.core.vars.settings.secretStore or "sops") == "sops";
      defaultText = literalExpression "whether sops-nix or agenix is the producer";
      description = ''
        Whether each secret must be one that sops-nix or agenix publishes. Where another producer does (clan's age and
        password-store backends, a person), what it will publish is not known when the system is built.
      '';
    };

    settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options.source = mkOption {
          type = types.submodule (
            rollout.source {
              default =
                if (config.age.secrets or { }) != { } && (config.sops.secrets or { }) == { } then
                  toString config.age.secretsDir
                else
                  "/run/secrets";
              defaultText = literalExpression ''"/run/secrets", or age.secretsDir where only agenix has secrets'';
              description = "Where secrets are published.";
            }
          );
          default = { };
          description = "The default source.";
        };
        options.sources = mkOption {
          type = types.attrsOf (
            types.submodule (rollout.source { description = "Where the secrets of this source are published."; })
          );
          default = { };
          example = literalExpression ''{ acme.path = "/var/lib/acme/example.org"; }'';
          description = "Further sources, by name. A path of `oemSecretsFiles` below one of them is a secret of it.";
        };
        options.rollout = mkOption {
          type = types.submodule rollout.all;
          default = { };
          example = {
            attempts = 3;
            pause_seconds = 30;
            units.on_failure = "page@%i.service";
          };
          description = "How restarts are carried out: `[rollout]` of docs/configuration.md.";
        };
      };
      default = { };
      description = "`/etc/credferry/config.toml`: see docs/configuration.md. The VMs are in `vms`.";
    };

    vms = mkOption {
      type = types.attrsOf vm;
      default = { };
      description = "The VMs that get credentials.";
    };
  };

  config = mkIf cfg.enable {
    services.credferry = {
      settings.vms = builtins.mapAttrs (_: vmTable) cfg.vms;
      settings.sources = builtins.mapAttrs (_: path: { path = mkDefault path; }) sources.made;
      vms = mkMerge (
        map (
          name:
          let
            files = guests.files name;
          in
          lib.optionalAttrs (files != { }) {
            # A path that is in no source stays as it is. No secret has such a name, and an assertion says what is wrong.
            ${name}.credentials = builtins.mapAttrs (
              _: path: builtins.mapAttrs (_: mkDefault) (sources.place path)
            ) files;
          }
        ) guests.names
      );
    };

    environment.systemPackages = [ cfg.package ];
    system.checks = lib.optional (canCheck && runners != { }) judged;
    environment.etc."credferry/config.toml".source = if canCheck then checked else unchecked;

    # nixpkgs' systemd reads catalogues in its own package and here, and never in /etc (libsystemd/sd-journal/catalog.c).
    systemd.tmpfiles.rules = [
      "L+ /usr/local/lib/systemd/catalog/credferry.catalog - - - - ${../catalog/credferry.catalog}"
    ]
    # The agent looks for a VM's NixOS system in this directory.
    ++ lib.optional (vmDirectory != null && vmDirectory != "/var/lib/microvms") "L /var/lib/microvms - - - - ${vmDirectory}"
    # Where root puts the guests' keys. Nobody else may reach them there.
    ++ lib.optional (keyed != { }) "d /run/credferry-guest-keys 0700 root root - -"
    ++ lib.optional (metrics != null) "d ${metrics} :0755 :${
      if cfg.unprivileged then "credferry" else "root"
    } :root - -";

    # microvm.nix would give the source of each share to the VMs' user.
    systemd.tmpfiles.settings."10-microvm" = lib.mapAttrs' (name: _: {
      name = "/run/credferry-guest-keys/${name}";
      value.d = {
        user = lib.mkForce "root";
        group = lib.mkForce "root";
        mode = lib.mkForce "0700";
      };
    }) keyed;

    # Members of this group can see the state of VMs on the bus.
    users.groups.credferry = { };

    services.dbus.packages = lib.optional (builtins.pathExists ../dbus) (
      pkgs.runCommand "credferry-dbus" { } ''
        mkdir -p $out/share/dbus-1
        cp -r ${../dbus} $out/share/dbus-1/system.d
      ''
    );

    # The unit files are those of ../systemd. The settings below extend them, and so do the operator's own.
    systemd.packages =
      map
        (
          file:
          pkgs.writeTextDir "lib/systemd/system/${file}" (unitFile (../systemd + "/${file}"))
        )
        [
          "credferry.service"
          "credferry-health@.service"
          "credferry-push@.service"
          "credferry-restart@.service"
          "credferry-seal.service"
          "credferry-seal@.service"
        ];

    systemd.services = mkMerge (
      [
        {
          credferry = {
            wantedBy = [ "multi-user.target" ];
            after = producers;
            # A reload restarts no VM unless its secrets have changed.
            reloadTriggers = [ config.environment.etc."credferry/config.toml".source ];
            serviceConfig = lib.optionalAttrs (metrics != null) { ReadWritePaths = [ "-${metrics}" ]; };
          };
          credferry-seal = {
            wantedBy = [ "microvms.target" ];
            after = producers;
            # The first sealing of this boot is done. The agent seals all later changes.
            restartIfChanged = false;
          };
          "credferry-seal@" = {
            after = producers;
            restartIfChanged = false;
          };
          # systemd's own unit for this runs after an update of /var only (ConditionNeedsUpdate=), which a switch is
          # not.
          credferry-catalog = {
            description = "Explain credferry's messages in the journal";
            wantedBy = [ "multi-user.target" ];
            # One of these units makes the link: the first at boot, the second in a switch.
            after = [
              "systemd-tmpfiles-setup.service"
              "systemd-tmpfiles-resetup.service"
            ];
            restartTriggers = [ ../catalog/credferry.catalog ];
            serviceConfig = {
              Type = "oneshot";
              RemainAfterExit = true;
              ExecStart = "${lib.getExe' config.systemd.package "journalctl"} --update-catalog";
            };
          };
        }
      ]
      ++ lib.mapAttrsToList (name: vm: {
        ${unitName vm} = mkMerge [
          (units.dropIn {
            vm = name;
            inherit (vm) unit;
            agent = lib.getExe cfg.package;
            inherit (pkgs) coreutils;
          } (
            if vm.channel == "directory" && !(isVm name vm) then
              ../systemd/credferry-unit.conf
            else
              ../systemd/credferry-vm.conf
          ))
          {
            overrideStrategy = "asDropin";
            # The unit is microvm.nix's, so the drop-in must not set PATH. microvm.nix's own drop-ins do the same.
            path = lib.mkForce [ ];
          }
          # For a VM that is declared here, microvm.vms.NAME.restartIfChanged decides.
          (lib.optionalAttrs (!(builtins.elem name guests.names)) { restartIfChanged = mkDefault false; })
        ];
      }) cfg.vms
      # The share's source must exist when it is served, also for a VM that a switch adds.
      ++ lib.mapAttrsToList (name: _: {
        "microvm-virtiofsd@${name}" = {
          overrideStrategy = "asDropin";
          path = lib.mkForce [ ];
          after = [ "systemd-tmpfiles-resetup.service" ];
        };
      }) (lib.filterAttrs (name: _: builtins.elem name guests.names) keyed)
      ++ lib.mapAttrsToList (name: vm: {
        "credferry-push@${name}" = {
          overrideStrategy = "asDropin";
          path = lib.mkForce [ ];
          after = [ vm.unit ];
          serviceConfig =
            identity vm
            // lib.optionalAttrs (vm.unit != "microvm@${name}.service") {
              # The template's commands for this unit; the empty line ends the template's own.
              ExecStart = [
                ""
              ]
              ++ map (builtins.replaceStrings [ "microvm@%i.service" ] [ (lib.escape [ "\\" ] vm.unit) ]) (
                (units.parse (unitFile (../systemd + "/credferry-push@.service"))).Service.ExecStart
              );
            };
        };
      }) (lib.filterAttrs (_: vm: vm.live) cfg.vms)
    );
  };
}
