# SPDX-License-Identifier: MIT
#
# Where secrets are published on this host: the default source, those of settings.sources, and those that other
# modules are known to make. A path below one of them is a secret of that source.
{
  lib,
  config,
  options,
}:
let
  cfg = config.services.credferry;
  default = cfg.settings.source.path;
  declared = builtins.mapAttrs (_: source: source.path) cfg.settings.sources;

  # Names of certificates may have characters that no source's name has.
  plain = builtins.replaceStrings [ "*" "@" ":" "/" ] [ "_" "_" "_" "_" ];
  made =
    lib.optionalAttrs (options ? sops) {
      secrets = "/run/secrets";
      secrets-for-users = "/run/secrets-for-users";
    }
    // lib.optionalAttrs (options ? age) { agenix = toString config.age.secretsDir; }
    // lib.mapAttrs' (name: certificate: {
      name = "acme-${plain name}";
      value = certificate.directory;
    }) (config.security.acme.certs or { });
  known = lib.filterAttrs (_: path: path != default) made // declared;
  length = path: builtins.stringLength path;
in
rec {
  /*
    The directory of a source, by its name, or null for one that is not known.
  */
  path = name: if name == null then default else known.${name} or null;

  /*
    The source and the name in it of a file. A file that is in none keeps its path: no secret has such a name.
  */
  place =
    file:
    let
      holds = name: lib.hasPrefix "${known.${name}}/" file;
      longer =
        best: name:
        if holds name && (best == null || length known.${name} > length known.${best}) then name else best;
      best = builtins.foldl' longer null (builtins.attrNames known);
      isDefault =
        lib.hasPrefix "${default}/" file && (best == null || length default >= length known.${best});
      source = if isDefault then null else best;
    in
    {
      inherit source;
      secret = if isDefault || best != null then lib.removePrefix "${path source}/" file else file;
    };

  /*
    The tables of [sources] that the configuration needs for these names, besides the declared ones.
  */
  tables =
    names:
    lib.filterAttrs (name: _: !(declared ? ${name}) && builtins.elem name names) (
      builtins.mapAttrs (_: path: { inherit path; }) known
    );
}
