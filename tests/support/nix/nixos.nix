# SPDX-License-Identifier: MIT
#
# The options of NixOS that the project's modules define or read. The modules may use no other option before it is added
# here. Each option names the file of nixpkgs for which it stands.
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

  # nixos/lib/systemd-unit-options.nix: commonUnitOptions.
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
  # nixos/lib/systemd-unit-options.nix: serviceOptions, stage2ServiceOptions.
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
  # nixos/modules/config/users-groups.nix
  user = {
    options = {
      description = with' "" types.str;
      group = mkOption { type = types.str; };
      isSystemUser = with' false types.bool;
    };
  };
  # nixos/modules/system/etc/etc.nix
  file = {
    options = {
      source = mkOption { type = types.path; };
      text = with' null (types.nullOr types.lines);
    };
  };
  # nixos/modules/system/boot/systemd/tmpfiles.nix
  tmpfile = {
    options = {
      user = with' "-" types.str;
      group = with' "-" types.str;
      mode = with' "-" types.str;
    };
  };
  # nixos/lib/systemd-unit-options.nix: mountOptions.
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
    # nixos/modules/misc/assertions.nix
    assertions = with' [ ] (types.listOf types.raw);
    warnings = with' [ ] (types.listOf types.str);
    # nixos/modules/misc/version.nix
    system.stateVersion = with' "26.05" types.str;
    # nixos/modules/system/boot/systemd/tmpfiles.nix
    systemd.tmpfiles.rules = with' [ ] (types.listOf types.str);
    systemd.tmpfiles.settings = with' { } (
      types.attrsOf (types.attrsOf (types.attrsOf (types.submodule tmpfile)))
    );
    # nixos/modules/tasks/network-interfaces.nix
    networking.hostName = with' "nixos" types.str;
    # nixos/modules/services/networking/firewall.nix
    networking.firewall.allowedTCPPorts = with' [ ] (types.listOf types.port);
    # nixos/modules/services/databases/etcd.nix
    services.etcd = {
      enable = with' false types.bool;
      name = with' config.networking.hostName types.str;
      clientCertAuth = with' false types.bool;
      peerClientCertAuth = with' false types.bool;
      extraConf = with' { } (types.attrsOf types.str);
    }
    // lib.genAttrs [
      "listenClientUrls"
      "listenPeerUrls"
      "advertiseClientUrls"
      "initialAdvertisePeerUrls"
      "initialCluster"
    ] (_: with' [ ] (types.listOf types.str))
    // lib.genAttrs [
      "certFile"
      "keyFile"
      "trustedCaFile"
      "peerCertFile"
      "peerKeyFile"
      "peerTrustedCaFile"
    ] (_: with' null (types.nullOr types.path));
    # nixos/modules/system/etc/etc.nix
    environment.etc = with' { } (types.attrsOf (types.submodule file));
    # nixos/modules/config/system-path.nix
    environment.systemPackages = with' [ ] (types.listOf types.package);
    # nixos/modules/services/system/dbus.nix
    services.dbus.packages = with' [ ] (types.listOf types.path);
    # nixos/modules/security/polkit.nix
    security.polkit.enable = with' false types.bool;
    # nixos/modules/security/tpm2.nix
    security.tpm2.enable = with' false types.bool;
    # nixos/modules/config/users-groups.nix
    users.users = with' { } (types.attrsOf (types.submodule user));
    users.groups = with' { } (types.attrsOf (types.submodule { }));
    # nixos/modules/system/activation/top-level.nix
    system.checks = with' [ ] (types.listOf types.package);
    # nixos/modules/system/boot/systemd.nix
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
      # nixos/modules/system/boot/modprobe.nix
      blacklistedKernelModules = with' [ ] (types.listOf types.str);
      # nixos/modules/system/boot/kernel.nix
      kernelModules = with' [ ] (types.listOf types.str);
      kernelParams = with' [ ] (types.listOf types.str);
      initrd = {
        availableKernelModules = with' [ ] (types.listOf types.str);
        kernelModules = with' [ ] (types.listOf types.str);
        # nixos/modules/system/boot/systemd/initrd.nix
        systemd.enable = with' false types.bool;
        systemd.mounts = with' [ ] (types.listOf (types.submodule mount));
      };
    };
  };
}
