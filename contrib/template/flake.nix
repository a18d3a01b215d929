# SPDX-License-Identifier: MIT
{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    credferry.url = "git+https://your.git/credferry"; # the address from which you took this template
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
      nixosConfigurations.my-host = nixpkgs.lib.nixosSystem {
        modules = [
          credferry.nixosModules.host
          microvm.nixosModules.host
          sops-nix.nixosModules.sops
          ./host.nix
          { microvm.vms.my-vm.config.imports = [ credferry.nixosModules.guest ]; }
        ];
      };
    };
}
