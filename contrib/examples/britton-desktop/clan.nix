# SPDX-License-Identifier: MIT
#
# The same deployment in a clan: the part for the inventory. API_KEY is a clan var. clan generates it once, and `clan
# vars generate --regenerate` rotates it. The VM is ./test-vm.nix without oemSecretsFiles, with credferry.enable = true.
{
  modules.credferry = ../../clan; # from the flake: credferry.clan.modules.credferry

  inventory.instances.test-vm-secrets = {
    module.name = "credferry";
    module.input = "self";
    roles.host.machines.britton-desktop.settings = {
      vm = "test-vm";
      runtimeSecrets.api-key = {
        oemCredentialName = "API_KEY";
        generateSecret = true;
      };
      staticOEMStrings = [
        "io.systemd.credential:ENVIRONMENT=test"
        "io.systemd.credential:CLUSTER=britton-desktop"
      ];
    };
  };
}
