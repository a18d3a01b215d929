# SPDX-License-Identifier: MIT
#
# The host britton-desktop with one microVM, test-vm. The VM's API_KEY comes from sops-nix; credferry restarts the VM
# when it rotates. This needs the host modules of microvm.nix, sops-nix and credferry.
{
  sops.secrets.api-key = { };

  services.credferry = {
    enable = true;
    vms.test-vm.credentials = {
      # The VM's own configuration has API_KEY, as microvm.cloud-hypervisor.oemSecretsFiles.
      ENVIRONMENT.text = "test";
      CLUSTER.text = "britton-desktop";
    };
  };

  microvm.vms.test-vm.config.imports = [ ./test-vm.nix ];
}
