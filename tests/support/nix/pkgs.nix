# SPDX-License-Identifier: MIT
#
# As much of a package set as the project's modules and packages use. A package is a name: nothing is built. It stands for
# nixpkgs' pkgs/top-level/all-packages.nix and what that imports: pkgs/build-support/trivial-builders/default.nix
# (runCommand, writeShellScript, writeTextDir), pkgs/pkgs-lib/formats.nix (formats.toml) and
# pkgs/development/interpreters/python/mk-python-derivation.nix (buildPythonApplication).
{ lib }:
let
  package =
    pname: version: attributes:
    {
      type = "derivation";
      name = "${pname}-${version}";
      inherit pname version;
      outPath = "/nix/store/00000000000000000000000000000000-${pname}-${version}";
      meta.mainProgram = pname;
    }
    // attributes;

  tomlValue =
    with lib.types;
    oneOf [
      bool
      int
      float
      str
      path
      (listOf tomlValue)
      (attrsOf tomlValue)
    ]
    // {
      description = "TOML value";
    };

  plain = name: package name "1.0" { };

  pkgs = {
    inherit lib;
    stdenv = rec {
      hostPlatform = {
        isx86_64 = true;
        system = "x86_64-linux";
      };
      buildPlatform = hostPlatform // {
        canExecute = _: true;
      };
    };
    stdenvNoCC = pkgs.stdenv // {
      mkDerivation = attributes: package attributes.pname attributes.version attributes;
    };
    callPackage =
      path: extra: import path (builtins.intersectAttrs (builtins.functionArgs (import path)) pkgs // extra);
    runCommand =
      name: attributes: script:
      package name "0" ({ inherit name script; } // attributes // (attributes.passthru or { }));
    writeShellScript = name: text: package name "0" { inherit text; };
    writeTextDir = path: text: package "text" "0" { inherit path text; };
    formats.toml = _: {
      type = tomlValue;
      generate = name: value: package name "0" { inherit value; };
    };
    python3 = package "python3" "3.13.7" { interpreter = "/nix/store/python3/bin/python3"; };
    python3Packages = {
      buildPythonApplication = attributes: package attributes.pname attributes.version attributes;
    }
    // lib.genAttrs [
      "cryptography"
      "msgspec"
      "prometheus-client"
      "pydbus"
      "pygobject3"
      "python-dotenv"
      "pyyaml"
      "requests"
      "rich"
      "setuptools"
      "structlog"
      "systemd-python"
      "typer"
      "urllib3"
      "watchdog"
    ] plain;
    cloud-hypervisor = package "cloud-hypervisor" "53.0" { };
    cloud-hypervisor-graphics = package "cloud-hypervisor-graphics" "53.0" { };
    systemd = package "systemd" "257.9" { };
  }
  // lib.genAttrs [
    "coreutils"
    "glib"
    "gobject-introspection"
    "openssl"
    "util-linux"
    "wrapGAppsNoGuiHook"
  ] plain;
in
pkgs
