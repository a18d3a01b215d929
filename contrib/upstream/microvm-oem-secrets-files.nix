# SPDX-License-Identifier: MIT
#
# For microvm.nix alone, without credferry: `microvm.cloud-hypervisor.oemSecretsFiles`, secrets from files of the host, as
# OEM strings. README.md beside this file proposes it to microvm.nix.
#
# guest: a module for the VM. host: a module for its host.
{
  guest =
    {
      config,
      lib,
      pkgs,
      ...
    }:
    let
      inherit (config.microvm) vmHostPackages;
      inherit (config.microvm.cloud-hypervisor) oemSecretsFiles;
      cloud-hypervisor = vmHostPackages.cloud-hypervisor;
      start = vmHostPackages.writeShellScript "cloud-hypervisor" ''
        exec ${vmHostPackages.python3.interpreter} -I ${./oem-secrets-files.py} --real ${lib.getExe' cloud-hypervisor "cloud-hypervisor"} "$@"
      '';
    in
    {
      options.microvm.cloud-hypervisor.oemSecretsFiles = lib.mkOption {
        type = lib.types.attrsOf (lib.types.strMatching "/.*");
        default = { };
        example.API_KEY = "/run/secrets/api-key";
        description = ''
          Files on the host, by the name under which a unit of the guest loads them (`LoadCredential=`). They are read each
          time the VM starts, and are never in the Nix store or in an argument.
        '';
      };

      config = lib.mkIf (oemSecretsFiles != { }) {
        microvm.cloud-hypervisor.package = lib.mkOverride 900 (
          vmHostPackages.runCommand "cloud-hypervisor-with-secrets-${lib.getVersion cloud-hypervisor}"
            {
              version = lib.getVersion cloud-hypervisor;
              meta.mainProgram = "cloud-hypervisor";
            }
            ''
              mkdir -p $out/bin
              ln -s ${start} $out/bin/cloud-hypervisor
              ln -s ${lib.getExe' cloud-hypervisor "ch-remote"} $out/bin/ch-remote
            ''
        );

        # PID 1 of the guest reads the strings through it.
        boot.kernelModules = [ "dmi_sysfs" ];

        assertions = [
          {
            assertion = config.microvm.hypervisor == "cloud-hypervisor" && pkgs.stdenv.hostPlatform.isx86_64;
            message = "microvm.cloud-hypervisor.oemSecretsFiles needs cloud-hypervisor on x86_64, which alone has SMBIOS.";
          }
          {
            assertion = config.microvm.socket != null;
            message = "microvm.cloud-hypervisor.oemSecretsFiles needs the API: set microvm.socket.";
          }
          {
            assertion = lib.all (each: each.type != "macvtap") config.microvm.interfaces;
            message = "microvm.cloud-hypervisor.oemSecretsFiles does not work with macvtap interfaces, whose descriptors the API takes otherwise.";
          }
        ];
      };
    };

  host =
    { config, lib, ... }:
    let
      filesOf =
        name: vm:
        let
          guest =
            if (vm.flake or null) != null then
              vm.flake.nixosConfigurations.${name}.config
            else if (vm.evaluatedConfig or null) != null then
              vm.evaluatedConfig.config
            else
              vm.config.config;
        in
        guest.microvm.cloud-hypervisor.oemSecretsFiles or { };
    in
    {
      # PID 1 of the host reads the files for the VM's unit, whose user need not be able to.
      systemd.services = lib.mapAttrs' (name: vm: {
        name = "microvm@${name}";
        value = {
          overrideStrategy = "asDropin";
          path = lib.mkForce [ ];
          serviceConfig.LoadCredential = lib.mapAttrsToList (credential: file: "oem-secret.${credential}:${file}") (filesOf name vm);
        };
      }) config.microvm.vms;
    };
}
