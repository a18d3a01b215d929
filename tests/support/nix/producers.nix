# SPDX-License-Identifier: MIT
#
# The options of producers of secrets that the project's modules read. Each names the file for which it stands.
{ lib }:
let
  inherit (lib) mkOption types;
  with' = default: type: mkOption { inherit default type; };
in
{
  # sops-nix: modules/sops/default.nix, and modules/sops/templates/default.nix for templates.
  sops =
    { config, lib, ... }:
    {
      options.sops = {
        defaultSopsFile = with' "/etc/secrets.yaml" types.path;
        secrets = with' { } (
          types.attrsOf (
            types.submodule (
              { name, config, ... }:
              {
                options = {
                  name = with' name types.str;
                  path = with' "/run/secrets/${config.name}" types.str;
                  sopsFile = with' "/etc/secrets.yaml" types.path;
                  sopsFileHash = with' "0123abcd" types.str;
                  restartUnits = with' [ ] (types.listOf types.str);
                  reloadUnits = with' [ ] (types.listOf types.str);
                  neededForUsers = with' false types.bool;
                };
              }
            )
          )
        );
        templates = with' { } (
          types.attrsOf (
            types.submodule (
              { name, ... }:
              {
                options = {
                  name = with' name types.str;
                  content = with' "" types.lines;
                  restartUnits = with' [ ] (types.listOf types.str);
                };
              }
            )
          )
        );
      };
    };

  # agenix: modules/age.nix
  age =
    { config, lib, ... }:
    let
      inherit (config.age) secretsDir;
    in
    {
      options.age = {
        secretsDir = with' "/run/agenix" types.path;
        secrets = with' { } (
          types.attrsOf (
            types.submodule (
              { name, config, ... }:
              {
                options = {
                  name = with' name types.str;
                  file = mkOption { type = types.path; };
                  path = with' "${secretsDir}/${config.name}" types.str;
                  symlink = with' true types.bool;
                };
              }
            )
          )
        );
      };
    };

  # nixpkgs: nixos/modules/security/acme/default.nix
  acme =
    { lib, ... }:
    {
      options.security.acme.certs = with' { } (
        types.attrsOf (
          types.submodule (
            { name, ... }:
            {
              options.directory = with' "/var/lib/acme/${name}" types.str;
            }
          )
        )
      );
    };

  # clan-core: nixosModules/clanCore/vars/interface.nix, and vars/secret/sops/default.nix for the sops backend's paths after
  # `clan vars generate`.
  clan =
    { config, lib, ... }:
    {
      options.clan.core.vars = {
        settings.secretStore = with' "sops" types.str;
        generators = with' { } (
          types.attrsOf (
            types.submodule (
              generator@{ name, ... }:
              {
                options = {
                  script = with' "" types.str;
                  runtimeInputs = with' [ ] (types.listOf types.package);
                  files = with' { } (
                    types.attrsOf (
                      types.submodule (
                        { name, ... }:
                        {
                          options.path = with' "/run/secrets/vars/per-machine/britton-desktop/${generator.name}/${name}" types.str;
                        }
                      )
                    )
                  );
                };
              }
            )
          )
        );
      };
      config.sops.secrets = lib.concatMapAttrs (
        generator: each:
        lib.mapAttrs' (file: _: {
          name = "vars/per-machine/britton-desktop/${generator}/${file}";
          value = { };
        }) each.files
      ) config.clan.core.vars.generators;
    };
}
