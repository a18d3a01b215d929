# SPDX-License-Identifier: MIT
#
# cloud-hypervisor behind credferry-launch, for `microvm.cloud-hypervisor.package`: microvm.nix hands
# bin/cloud-hypervisor the complete arguments of the VM, uses bin/ch-remote for the balloon, and reads the version to
# know the grammar (lib/runners/cloud-hypervisor.nix).
{
  lib,
  runCommand,
  writeShellScript,
  launcher,
}:
cloud-hypervisor:
let
  version = lib.getVersion cloud-hypervisor;

  # A script loses the name microvm@HOST that microvm.nix gives the process; the launcher gives it again, from the
  # generation's manifest. The version is known here, so that the launcher need not ask the binary at each start.
  program = writeShellScript "cloud-hypervisor" ''
    exec ${lib.getExe launcher} --real ${lib.getExe' cloud-hypervisor "cloud-hypervisor"} ${
      lib.optionalString (
        builtins.match "[0-9]+([.][0-9]+)*" version != null
      ) "--hypervisor-version ${version} "
    }-- "$@"
  '';
in
if cloud-hypervisor ? credferry then
  cloud-hypervisor
else
  runCommand "credferry-cloud-hypervisor-${version}"
    {
      inherit version;
      pname = "credferry-cloud-hypervisor";
      passthru.credferry = {
        inherit launcher;
        hypervisor = cloud-hypervisor;
      };
      meta = {
        description = "cloud-hypervisor, started with fresh credentials";
        license = lib.licenses.mit;
        mainProgram = "cloud-hypervisor";
        platforms = lib.platforms.linux;
      };
    }
    ''
      mkdir -p $out/bin
      ln -s ${program} $out/bin/cloud-hypervisor
      ln -s ${lib.getExe' cloud-hypervisor "ch-remote"} $out/bin/ch-remote
    ''
