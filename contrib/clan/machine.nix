# SPDX-License-Identifier: MIT
#
# What one instance of the service means for its machine.
settings:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (settings) vm;
  generated = lib.filterAttrs (_: secret: secret.generateSecret) settings.runtimeSecrets;
  generator = name: "credferry-${vm}-${name}";

  inherit (config.services.credferry.settings) source;
  path =
    name: secret:
    if secret.secretPath != null then
      secret.secretPath
    else
      config.clan.core.vars.generators.${generator name}.files.value.path;

  # VALUE is everything after the first "=".
  credential = builtins.match "io[.]systemd[.]credential:([^=]+)=(.*)";
  texts = lib.filter (string: credential string != null) settings.staticOEMStrings;
  others = lib.filter (string: credential string == null) settings.staticOEMStrings;
  names =
    lib.mapAttrsToList (_: secret: secret.oemCredentialName) settings.runtimeSecrets
    ++ map (string: lib.head (credential string)) texts;
in
{
  imports = [ ../nixos/host.nix ];

  services.credferry = {
    enable = true;
    vms.${vm}.credentials = lib.listToAttrs (
      lib.mapAttrsToList (name: secret: {
        name = secret.oemCredentialName;
        value.secret = lib.removePrefix "${source.path}/" (path name secret);
      }) (lib.filterAttrs (_: secret: secret.generateSecret || secret.secretPath != null) settings.runtimeSecrets)
      ++ map (string: {
        name = lib.head (credential string);
        value.text = lib.elemAt (credential string) 1;
      }) texts
    );
  };

  clan.core.vars.generators = lib.mapAttrs' (name: _: {
    name = generator name;
    value = {
      files.value = { };
      runtimeInputs = [ pkgs.openssl ];
      # A newline would become part of the value.
      script = ''
        openssl rand -hex 32 | tr -d '\n' >"$out"/value
      '';
    };
  }) generated;

  microvm.vms = lib.optionalAttrs (others != [ ]) {
    ${vm}.config.microvm.cloud-hypervisor.platformOEMStrings = others;
  };

  assertions =
    lib.mapAttrsToList (name: secret: {
      assertion = secret.generateSecret != (secret.secretPath != null);
      message = ''
        credferry, VM ${vm}: runtimeSecrets.${name}: expected either secretPath or generateSecret = true.
      '';
    }) settings.runtimeSecrets
    ++ [
      {
        assertion = lib.unique names == names;
        message = ''
          credferry, VM ${vm}: two of runtimeSecrets and staticOEMStrings have the same credential name, among: ${lib.concatStringsSep ", " names}.
        '';
      }
    ];
}
