# SPDX-License-Identifier: MIT
#
# The options of microvm.nix that the project's modules define or read: nixos-modules/microvm/options.nix in a VM,
# nixos-modules/host/options.nix on its host.
{
  lib,
  pkgs,
  evalModules,
}:
let
  inherit (lib) mkOption types;
  with' = default: type: mkOption { inherit default type; };

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
      # As microvm.optimize does for this hypervisor.
      config.boot.initrd.systemd.enable = lib.mkDefault (config.microvm.hypervisor == "cloud-hypervisor");
      # As nixpkgs does, since pull request 405687.
      config.boot.initrd.systemd.mounts = [
        {
          where = "/sysroot/run";
          what = "/run";
          options = "rbind";
        }
      ];
    };

  parts = [
    "macvtap-interfaces"
    "pci-devices"
    "set-booted"
    "tap-interfaces"
    "virtiofsd"
  ];

  evaluated = types.raw // {
    description = "Toplevel NixOS config";
    merge = _: values: evalModules ([ guest ] ++ map (value: value.value or value) values);
  };
in
{
  inherit guest;

  host =
    { config, lib, ... }:
    {
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
      # Its template, and its own drop-in for each VM, which the project's must not contradict.
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
