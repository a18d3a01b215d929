# SPDX-License-Identifier: MIT
#
# Where secrets are published on this host: the default source, and those of settings.sources, among them the
# directories that other modules are known to make. A path below one of them is a secret of that source.
{
  lib,
  config,
  options,
}:
let
  cfg = config.services.credferry;
  default = cfg.settings.source.path;
  known = builtins.mapAttrs (_: source: source.path) cfg.settings.sources;
  secrets = builtins.attrValues (config.sops.secrets or { });

  # Names of certificates may have characters that no source's name has.
  plain = builtins.replaceStrings [ "*" "@" ":" "/" ] [ "_" "_" "_" "_" ];
  length = builtins.stringLength;
in
rec {
  /*
    The directories that other modules make, by name. One that no VM uses costs the agent nothing.
  */
  made = lib.filterAttrs (_: path: path != default) (
    lib.optionalAttrs (secrets != [ ]) { secrets = "/run/secrets"; }
    // lib.optionalAttrs (lib.any (secret: secret.neededForUsers) secrets) {
      secrets-for-users = "/run/secrets-for-users";
    }
    // lib.optionalAttrs ((config.age.secrets or { }) != { }) { agenix = toString config.age.secretsDir; }
    // lib.mapAttrs' (name: certificate: {
      name = "acme-${plain name}";
      value = certificate.directory;
    }) (config.security.acme.certs or { })
  );

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
      longer =
        best: name:
        if
          lib.hasPrefix "${known.${name}}/" file
          && (best == null || length known.${name} > length known.${best})
        then
          name
        else
          best;
      best = builtins.foldl' longer null (builtins.attrNames known);
      isDefault =
        lib.hasPrefix "${default}/" file && (best == null || length default >= length known.${best});
      source = if isDefault then null else best;
    in
    {
      inherit source;
      secret = if isDefault || best != null then lib.removePrefix "${path source}/" file else file;
    };
}
