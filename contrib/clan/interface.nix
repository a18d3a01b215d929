# SPDX-License-Identifier: MIT
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options = {
    vm = mkOption {
      type = types.strMatching "[A-Za-z0-9_][A-Za-z0-9._-]*";
      example = "test-vm";
      description = "Name of the VM, as in `microvm.vms`.";
    };

    runtimeSecrets = mkOption {
      default = { };
      description = "Secrets that are read when the VM starts, and again whenever one changes.";
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              secretPath = mkOption {
                type = types.nullOr (types.strMatching "/.*");
                default = null;
                example = "/run/secrets/api-key";
                description = "Where the secret is published. Null is where clan publishes the generated one.";
              };
              oemCredentialName = mkOption {
                type = types.strMatching "[A-Za-z0-9._-]+";
                default = name;
                example = "API_KEY";
                description = "The credential's name in the guest.";
              };
              generateSecret = mkOption {
                type = types.bool;
                default = false;
                description = "Whether clan generates it, as 64 random hexadecimal digits.";
              };
            };
          }
        )
      );
    };

    staticOEMStrings = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "io.systemd.credential:ENVIRONMENT=test" ];
      description = ''
        OEM strings that are no secrets. Those of the form io.systemd.credential:NAME=VALUE are given as credentials are;
        others become the VM's microvm.cloud-hypervisor.platformOEMStrings, for which it must be declared by
        microvm.vms.NAME.config. All are in the store, readable by everyone.
      '';
    };
  };
}
