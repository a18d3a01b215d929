# SPDX-License-Identifier: MIT
#
# The options of sops-nix (modules/sops), agenix (modules/age.nix) and clan's vars that the project's modules read.
{ lib }:
let
  inherit (lib) mkOption types;
  with' = default: type: mkOption { inherit default type; };
in
{
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

  # With the sops backend, after `clan vars generate`.
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
