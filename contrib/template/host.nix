# SPDX-License-Identifier: MIT
{
  networking.hostName = "my-host";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";

  # Your machine: replace these.
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };

  # `sops secrets.yaml` makes this file, with the key api-key, for the keys in .sops.yaml.
  sops.defaultSopsFile = ./secrets.yaml;
  sops.age.sshKeyPaths = [ "/etc/ssh/ssh_host_ed25519_key" ];
  sops.secrets.api-key = { };
  services.openssh.enable = true; # makes that key

  services.credferry.enable = true;

  microvm.vms.my-vm.config = ./vm.nix;
}
