# SPDX-License-Identifier: MIT
#
# The host britton-desktop with one microVM, test-vm, whose API_KEY comes from sops-nix and follows its rotations.
# It needs the host modules of microvm.nix, sops-nix and credferry.
{
  sops.secrets.api-key = { };

  services.credferry = {
    enable = true;
    vms.test-vm.credentials = {
      # API_KEY is in the VM's own configuration, as microvm.cloud-hypervisor.oemSecretsFiles.
      ENVIRONMENT.text = "test";
      CLUSTER.text = "britton-desktop";
    };
  };

  microvm.vms.test-vm.config.imports = [ ./test-vm.nix ];
}
