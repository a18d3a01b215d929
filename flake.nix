# SPDX-License-Identifier: MIT
{
  description = "Ferries secrets into cloud-hypervisor microVMs, and does it again whenever one rotates";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      # cloud-hypervisor has SMBIOS on this one only.
      systems = [ "x86_64-linux" ];
      perSystem =
        f:
        builtins.listToAttrs (
          map (system: {
            name = system;
            value = f nixpkgs.legacyPackages.${system};
          }) systems
        );
      launcher = pkgs: pkgs.callPackage ./contrib/nixos/launcher.nix { };
      package = pkgs: pkgs.callPackage ./contrib/nixos/package.nix { launcher = launcher pkgs; };
      wrap = pkgs: pkgs.callPackage ./contrib/nixos/wrap.nix { launcher = launcher pkgs; };
    in
    {
      packages = perSystem (pkgs: {
        default = package pkgs;
        credferry = package pkgs;
        credferry-launch = launcher pkgs;
        cloud-hypervisor = wrap pkgs pkgs.cloud-hypervisor;
      });

      lib = {
        # pkgs -> cloud-hypervisor -> the package for microvm.cloud-hypervisor.package
        wrapCloudHypervisor = wrap;
      };

      overlays.default = final: _: {
        credferry = package final;
        credferry-launch = launcher final;
        wrapCloudHypervisor = wrap final;
      };

      nixosModules = {
        host = ./contrib/nixos/host.nix;
        guest = ./contrib/nixos/guest.nix;
        default = self.nixosModules.host;
      };

      clan.modules.credferry = ./contrib/clan;

      checks = self.packages;
    };
}
