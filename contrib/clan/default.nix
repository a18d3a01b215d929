# SPDX-License-Identifier: MIT
#
# A clan service: the secrets of one microVM, as clan vars where they are to be generated.
_: {
  _class = "clan.service";
  manifest.name = "credferry";
  manifest.description = "Secrets for cloud-hypervisor microVMs at run time, and again whenever one rotates";
  manifest.categories = [ "System" ];
  manifest.readme = builtins.readFile ./README.md;

  roles.host = {
    description = "The machine on which the microVM runs";
    interface = ./interface.nix;
    perInstance =
      { settings, ... }:
      {
        nixosModule = import ./machine.nix settings;
      };
  };
}
