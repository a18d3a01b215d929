# SPDX-License-Identifier: MIT
#
# The options of microvm.nix that the project's modules define or read, and what its own modules define. Each part names
# the file of microvm.nix for which it stands.
{
  lib,
  pkgs,
  evalModules,
}:
let
  inherit (lib) mkOption types;
  with' = default: type: mkOption { inherit default type; };

  # nixos-modules/microvm/options.nix: shares.
  share = {
    options = {
      tag = mkOption { type = types.str; };
      source = mkOption { type = types.str; };
      mountPoint = mkOption { type = types.path; };
      proto = with' "9p" (
        types.enum [
          "9p"
          "virtiofs"
        ]
      );
      readOnly = with' false types.bool;
    };
  };

  # nixos-modules/microvm/options.nix
  guest =
    { config, ... }:
    {
      imports = [ ./nixos.nix ];
      options.microvm = {
        hypervisor = with' "qemu" (
          types.enum [
            "qemu"
            "cloud-hypervisor"
          ]
        );
        vcpu = with' 1 types.ints.positive;
        mem = with' 512 types.ints.positive;
        vsock.cid = with' null (types.nullOr types.int);
        # By default a hash of the host name.
        machineId = with' "5ea1ed00-c0ff-ee00-c0ff-ee0000000252" (types.nullOr types.str);
        shares = with' [ ] (types.listOf (types.submodule share));
        graphics.enable = with' false types.bool;
        vmHostPackages = with' pkgs types.raw;
        credentialFiles = with' { } (types.attrsOf types.path);
        declaredRunner = with' (pkgs.runCommand "microvm-cloud-hypervisor-${config.networking.hostName}" { } "") types.package;
        cloud-hypervisor = {
          package = with' pkgs.cloud-hypervisor types.package;
          platformOEMStrings = with' [ ] (types.listOf types.str);
          extraArgs = with' [ ] (types.listOf types.str);
        };
      };
      # nixos-modules/microvm/optimization.nix does so for this hypervisor.
      config.boot.initrd.systemd.enable = lib.mkDefault (config.microvm.hypervisor == "cloud-hypervisor");
      # nixpkgs' nixos/modules/system/boot/systemd/initrd.nix, since pull request 405687.
      config.boot.initrd.systemd.mounts = [
        {
          where = "/sysroot/run";
          what = "/run";
          options = "rbind";
        }
      ];
    };

  # nixos-modules/host/default.nix: what microvm@ requires.
  parts = [
    "macvtap-interfaces"
    "pci-devices"
    "set-booted"
    "tap-interfaces"
    "virtiofsd"
  ];

  # nixos-modules/host/options.nix: vms.NAME.config.
  evaluated = types.raw // {
    description = "Toplevel NixOS config";
    merge =
      loc: values:
      let
        name = builtins.elemAt loc (builtins.length loc - 2);
      in
      evalModules (
        [
          guest
          { networking.hostName = lib.mkDefault name; }
        ]
        ++ map (value: value.value or value) values
      );
  };
in
{
  inherit guest;

  host =
    { config, lib, ... }:
    {
      # nixos-modules/host/options.nix
      options.microvm = {
        stateDir = with' "/var/lib/microvms" types.path;
        vms = with' { } (
          types.attrsOf (
            types.submodule {
              options = {
                config = with' null (types.nullOr evaluated);
                evaluatedConfig = with' null (types.nullOr types.raw);
                flake = with' null (types.nullOr types.raw);
                restartIfChanged = with' false types.bool;
              };
            }
          )
        );
      };
      # nixos-modules/host/default.nix: it gives the source of each share to the VMs' user, unless the source exists.
      config.systemd.tmpfiles.settings."10-microvm" = lib.foldl' (
        all: vm:
        lib.foldl' (
          found: share:
          found
          // {
            ${share.source}.d = {
              user = ":microvm";
              group = ":kvm";
              mode = ":0775";
            };
          }
        ) all (if vm.config == null then [ ] else vm.config.config.microvm.shares)
      ) { } (lib.attrValues config.microvm.vms);
      # nixos-modules/host/default.nix: its template, and its own drop-in for each VM, which the project's must not
      # contradict.
      config.systemd.services = {
        "microvm@" = {
          description = "MicroVM '%i'";
          restartIfChanged = false;
          requires = map (part: "microvm-${part}@%i.service") parts;
          after = [ "network.target" ] ++ map (part: "microvm-${part}@%i.service") parts;
          unitConfig.ConditionPathExists = "${config.microvm.stateDir}/%i/current/bin/microvm-run";
          serviceConfig = {
            Type = "simple";
            WorkingDirectory = "${config.microvm.stateDir}/%i";
            ExecStart = "${config.microvm.stateDir}/%i/current/bin/microvm-run";
            User = "microvm";
            Group = "kvm";
          };
        };
      }
      // lib.mapAttrs' (name: _: {
        name = "microvm-virtiofsd@${name}";
        value = {
          overrideStrategy = "asDropin";
          path = lib.mkForce [ ];
        };
      }) config.microvm.vms
      // lib.mapAttrs' (name: vm: {
        name = "microvm@${name}";
        value = {
          overrideStrategy = "asDropin";
          path = lib.mkForce [ ];
          serviceConfig.X-RestartIfChanged = [
            ""
            (if vm.restartIfChanged then "true" else "false")
          ];
          serviceConfig.Type = "notify";
        };
      }) config.microvm.vms;
    };
}
