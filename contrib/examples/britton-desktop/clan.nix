# SPDX-License-Identifier: MIT
#
# The same deployment in a clan: the inventory's part. API_KEY is a clan var, generated once and rotated with `clan
# vars generate --regenerate`. The VM is ./test-vm.nix without its oemSecretsFiles, and with credferry.enable = true.
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
