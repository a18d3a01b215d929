# SPDX-License-Identifier: MIT
#
# A NixOS test of a host with microvm.nix, for pkgs.testers.runNixOSTest: a real guest under cloud-hypervisor. It needs
# nested virtualisation.
# microvm: the flake of microvm.nix; credferry: this one.
{ microvm, credferry }:
{ ... }:
{
  name = "credferry-microvm";

  nodes.machine = {
    imports = [
      credferry.nixosModules.host
      microvm.nixosModules.host
      ./producer.nix
    ];
    virtualisation = {
      memorySize = 4096;
      cores = 2;
      diskSize = 4096;
      qemu.options = [ "-cpu host" ];
    };
    services.credferry.enable = true;

    microvm.vms.test-vm.config =
      { pkgs, ... }:
      {
        imports = [ credferry.nixosModules.guest ];
        system.stateVersion = "26.05";
        microvm = {
          hypervisor = "cloud-hypervisor";
          mem = 768;
          vsock.cid = 3;
          cloud-hypervisor.oemSecretsFiles.API_KEY = "/run/secrets/api-key";
        };
        credferry.live.enable = true;
        systemd.services.show-key = {
          wantedBy = [ "multi-user.target" ];
          serviceConfig.LoadCredential = "API_KEY";
          serviceConfig.RemainAfterExit = true;
          script = ''echo "$(cut -c1-8 /proc/sys/kernel/random/boot_id) has $(sha256sum <"$CREDENTIALS_DIRECTORY/API_KEY")" >/dev/console'';
        };
      };
  };

  testScript = ''
    import hashlib

    def boot_of(value):
        """Wait until the guest shows a value's digest; the id of the guest's boot."""
        digest = hashlib.sha256(value.encode()).hexdigest()
        journal = f"journalctl -b -u microvm@test-vm.service -o cat | grep -a 'has {digest}'"
        machine.wait_until_succeeds(journal)
        return machine.succeed(journal).splitlines()[-1].split(" has ")[0][-8:]

    machine.succeed("publish-secrets one")
    machine.wait_for_unit("credferry.service")
    machine.succeed("systemctl restart microvm@test-vm.service")

    with subtest("the guest's unit has the value"):
        first = boot_of("one")

    with subtest("a rotation reaches the running guest"):
        machine.succeed("publish-secrets two")
        assert boot_of("two") == first

    with subtest("a restart of the VM keeps it"):
        machine.succeed("credferry restart test-vm")
        machine.wait_until_succeeds("credferry status test-vm | grep -q 'in step'")
  '';
}
