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
                description = "Where the secret is published. Null means the place where clan publishes the generated secret.";
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
                description = "Whether clan generates the secret, as 64 random hexadecimal digits.";
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
        OEM strings that are not secret. Strings of the form io.systemd.credential:NAME=VALUE reach the VM like its other
        credentials. Other strings become the VM's microvm.cloud-hypervisor.platformOEMStrings; for these, declare the VM
        with microvm.vms.NAME.config. All of them are in the Nix store, where every user can read them.
      '';
    };
  };
}
