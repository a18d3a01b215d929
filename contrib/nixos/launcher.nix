# SPDX-License-Identifier: MIT
#
# credferry-launch alone. It runs at each start of a VM, so it uses Python's standard library and nothing else.
{
  lib,
  stdenvNoCC,
  python3,
}:
stdenvNoCC.mkDerivation {
  pname = "credferry-launch";
  version = builtins.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../../agent/__init__.py)
  );

  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [ ../../launcher ];
  };

  nativeBuildInputs = [ python3 ];
  strictDeps = true;
  dontConfigure = true;
  dontBuild = true;

  # -I and -S: neither environment nor working directory nor site-packages decides what is imported, and no `site`
  # is loaded. The bytecode is never compared with its source: the store sets all times to 1, so that Python would
  # take bytecode with a time stamp for outdated and compile the launcher anew at each start of a VM.
  installPhase = ''
    runHook preInstall
    mkdir -p $out/bin $out/lib/credferry/credferry
    cp -r launcher $out/lib/credferry/credferry/
    python3 -m compileall -q --invalidation-mode unchecked-hash $out/lib/credferry
    cat >$out/bin/credferry-launch <<EOF
    #!${python3.interpreter} -IS
    import gc
    import sys

    gc.disable()  # until all is imported, there is no garbage
    sys.path.insert(0, "$out/lib/credferry")
    from credferry.launcher.__main__ import main

    gc.freeze()
    gc.enable()
    sys.exit(main())
    EOF
    chmod 0755 $out/bin/credferry-launch
    runHook postInstall
  '';

  doInstallCheck = stdenvNoCC.buildPlatform.canExecute stdenvNoCC.hostPlatform;
  installCheckPhase = ''
    $out/bin/credferry-launch --help >/dev/null
  '';

  meta = {
    description = "Starts cloud-hypervisor with fresh credentials as SMBIOS OEM strings";
    license = lib.licenses.mit;
    mainProgram = "credferry-launch";
    platforms = lib.platforms.linux;
  };
}
