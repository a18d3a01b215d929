# SPDX-License-Identifier: MIT
#
# The configurations of the VMs that microvm.nix declares on this host, in any of its three ways.
{ lib, host }:
let
  inherit (lib) any;

  declared = host.microvm.vms or { };
in
rec {
  names = builtins.attrNames declared;

  /*
    A VM's NixOS configuration, or null for a VM that is not declared on this host (made with `microvm -c`, or
    without microvm.nix). The three ways are those of microvm.nix (nixos-modules/host/default.nix).
  */
  config =
    name:
    let
      vm = declared.${name};
    in
    if !(declared ? ${name}) then
      null
    else if (vm.flake or null) != null then
      vm.flake.nixosConfigurations.${name}.config
    else if (vm.evaluatedConfig or null) != null then
      vm.evaluatedConfig.config
    else if (vm.config or null) != null then
      vm.config.config
    else
      null;

  /*
    What a VM's guest module asks for: credential name to path on the host.
  */
  files =
    name:
    let
      guest = config name;
    in
    if guest == null then { } else guest.microvm.cloud-hypervisor.oemSecretsFiles or { };

  /*
    The script of microvm.nix that starts a VM, or null where there is none to be known.
  */
  runner =
    name:
    let
      guest = config name;
      package = if guest == null then null else guest.microvm.declaredRunner or null;
    in
    if package == null then null else "${package}/bin/microvm-run";

  /*
    The systemd that a VM's guest runs, or 252 where that is not known: the careful answer.
  */
  systemd =
    name:
    let
      guest = config name;
      major = if guest == null then null else builtins.match "([0-9]+).*" (guest.systemd.package.version or "");
    in
    if major == null then 252 else lib.toInt (builtins.head major);

  /*
    Whether a VM's hypervisor is started by the launcher.
  */
  isWrapped =
    name:
    let
      guest = config name;
    in
    guest != null && guest.microvm.cloud-hypervisor.package ? credferry;

  /*
    The machine id of a VM whose guest gets its key from the host, or null for any other VM.
  */
  machineId =
    name:
    let
      guest = config name;
    in
    if guest != null && (guest.credferry.guestKey.enable or false) then guest.microvm.machineId or null else null;

  /*
    Whether a VM's guest takes credentials while it runs.
  */
  isLive =
    name:
    let
      guest = config name;
    in
    guest != null && (guest.credferry.live.enable or false);

  /*
    Whether a VM has a vsock, by its option or by its arguments, or null where the VM is not declared here.
  */
  hasVsock =
    name:
    let
      guest = config name;
    in
    if guest == null then
      null
    else
      (guest.microvm.vsock.cid or null) != null
      || any (lib.hasPrefix "--vsock") (guest.microvm.cloud-hypervisor.extraArgs or [ ]);
}
