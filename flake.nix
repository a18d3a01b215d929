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

        # pkgs -> the flake of microvm.nix -> a NixOS test with a real guest, which needs nested virtualisation. It is no
        # check of this flake, which has no input but nixpkgs.
        microvmTest =
          pkgs: microvm:
          pkgs.testers.runNixOSTest (
            import ./tests/nixos/microvm.nix {
              inherit microvm;
              credferry = self;
            }
          );
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

      # Where clan-core looks for services of other flakes. `nix flake check` warns that it does not know this output.
      clan.modules.credferry = ./contrib/clan;

      templates.default = {
        path = ./contrib/template;
        description = "A host with one microVM, whose secret comes from sops-nix";
      };

      checks = perSystem (
        pkgs:
        self.packages.${pkgs.stdenv.hostPlatform.system}
        // {
          # Evaluates the modules on a whole host, and builds the agent's configuration, which the agent checks then.
          modules =
            let
              host = nixpkgs.lib.nixosSystem {
                modules = [
                  self.nixosModules.host
                  {
                    nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
                    boot.loader.grub.enable = false;
                    fileSystems."/" = {
                      device = "none";
                      fsType = "tmpfs";
                    };
                    system.stateVersion = "26.05";
                    services.credferry = {
                      enable = true;
                      unprivileged = true;
                      settings.rollout.windows = [ "Sun 02:00..04:00" ];
                      vms.web.credentials.API_KEY.secret = "api-key";
                    };
                  }
                ];
              };
            in
            builtins.seq host.config.system.build.toplevel.drvPath (
              pkgs.linkFarm "credferry-modules" {
                config = host.config.environment.etc."credferry/config.toml".source;
                rule = host.config.environment.etc."polkit-1/rules.d/50-credferry.rules".source;
              }
            );

          # Boots a host in a VM.
          host = pkgs.testers.runNixOSTest (
            import ./tests/nixos/light.nix {
              inherit wrap;
              hostModule = self.nixosModules.host;
            }
          );
        }
      );

      formatter = perSystem (pkgs: pkgs.nixfmt-tree);

      devShells = perSystem (pkgs: {
        # The agent's dependencies, and what `make check` runs.
        default = pkgs.mkShell {
          inputsFrom = [ (package pkgs) ];
          packages = [
            pkgs.mypy
            pkgs.nixfmt
            pkgs.ruff
            pkgs.shellcheck
          ];
        };
      });
    };
}
