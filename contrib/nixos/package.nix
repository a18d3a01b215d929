# SPDX-License-Identifier: MIT
#
# The agent and the operator's command, `credferry`. Its `credferry-launch` is the one of launcher.nix.
{
  lib,
  python3Packages,
  glib,
  gobject-introspection,
  wrapGAppsNoGuiHook,
  launcher,
}:
python3Packages.buildPythonApplication {
  pname = "credferry";
  version = builtins.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../../agent/__init__.py)
  );
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../agent
      ../../launcher
      ../../pyproject.toml
      ../../README.md
      ../../LICENSE
      # What a wheel has beside the modules.
      ../../contrib/catalog
      ../../contrib/completions
      ../../contrib/dbus
      ../../contrib/examples
      ../../contrib/monitoring
      ../../contrib/systemd
      ../../contrib/sysusers
      ../../docs/man
    ];
  };

  build-system = [ python3Packages.setuptools ];

  dependencies = with python3Packages; [
    cryptography
    msgspec
    prometheus-client
    pydbus
    pygobject3
    python-dotenv
    pyyaml
    requests
    rich
    structlog
    systemd-python
    typer
    urllib3
    watchdog
  ];

  # pydbus needs Gio's introspection data at run time: the hook collects its path, and the Python wrapper sets it,
  # so that there is one wrapper and not two.
  nativeBuildInputs = [
    gobject-introspection
    wrapGAppsNoGuiHook
  ];
  buildInputs = [ glib ];
  dontWrapGApps = true;
  preFixup = ''
    makeWrapperArgs+=("''${gappsWrapperArgs[@]}")
  '';

  # pip's entry point would load site-packages at each start of a VM.
  postInstall = ''
    ln -sf ${lib.getExe launcher} $out/bin/credferry-launch
  '';

  pythonImportsCheck = [
    "credferry.agent.cli"
    "credferry.launcher.handoff"
  ];

  passthru = { inherit launcher; };

  meta = {
    description = "Ferries secrets into cloud-hypervisor microVMs, and does it again whenever one rotates";
    license = lib.licenses.mit;
    mainProgram = "credferry";
    platforms = lib.platforms.linux;
  };
}
