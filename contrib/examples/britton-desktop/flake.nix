# SPDX-License-Identifier: MIT
{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    credferry.url = "path:../../.."; # in your flake: the address of credferry's repository
    credferry.inputs.nixpkgs.follows = "nixpkgs";
    microvm.url = "github:microvm-nix/microvm.nix";
    microvm.inputs.nixpkgs.follows = "nixpkgs";
    sops-nix.url = "github:Mic92/sops-nix";
    sops-nix.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      nixpkgs,
      credferry,
      microvm,
      sops-nix,
      ...
    }:
    {
      nixosConfigurations.britton-desktop = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          credferry.nixosModules.host
          microvm.nixosModules.host
          sops-nix.nixosModules.sops
          ./host.nix
          {
            microvm.vms.test-vm.config.imports = [ credferry.nixosModules.guest ];
            networking.hostName = "britton-desktop";
            sops.defaultSopsFile = ./secrets.yaml; # your file: sops encrypts it for this host's key
            system.stateVersion = "26.05";
            # Add what makes it your machine: boot.loader, fileSystems, users, …
          }
        ];
      };
    };
}
