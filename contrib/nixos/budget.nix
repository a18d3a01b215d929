# SPDX-License-Identifier: MIT
#
# How many bytes a VM's OEM strings take in its SMBIOS table, as far as that is known when it is built: of secrets
# only that they are not empty. So a budget that is exceeded here is exceeded whatever the secrets are.
{ lib }:
let
  inherit (lib) foldl' stringLength;

  sum = foldl' (total: each: total + each) 0;
  base64 = bytes: (bytes + 2) / 3 * 4;
  align8 = bytes: (bytes + 7) / 8 * 8;

  hex = digits: lib.concatStrings (lib.genList (_: "0") digits);

  # systemd's encrypted credential (src/shared/creds-util.c): a header of 48 bytes, the metadata with the name, the
  # value, a tag of 16; Base64 on one line.
  sealed = name: bytes: base64 (48 + align8 (20 + stringLength name) + bytes + 16);

  # Each with its NUL, in the forms that the launcher gives them.
  plainString = name: bytes: stringLength "io.systemd.credential.binary:${name}=" + base64 bytes + 1;
  sealedString = name: bytes: stringLength "io.systemd.credential:${name}=" + sealed name bytes + 1;
in
rec {
  /*
    What a guest's systemd reads at most. Before 257 it is one page of sysfs less the 5 bytes of the structure's
    header, and the string that straddles its end is cut without a word (systemd PR 33539); from 257 on the limit
    is the room that cloud-hypervisor has for the table, which it does not check (arch/src/x86_64/smbios.rs).
  */
  limit = guestSystemd: if guestSystemd >= 257 then 65398 else 4091;

  /*
    The count of strings is one byte, and cloud-hypervisor lets it wrap.
  */
  maxCount = 255;

  /*
    What microvm.nix adds where `microvm.vsock.cid` is set (lib/runners/cloud-hypervisor.nix).
  */
  notifyString = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888";

  /*
    Bytes of strings that stand in the configuration as they are.
  */
  static = strings: sum (map (string: stringLength string + 1) strings);

  /*
    Least bytes of the manifest that a live VM's guest gets as one more credential (agent/reconcile/live.py).
  */
  manifest =
    vm: guestKey: names:
    let
      lines = [
        "credferry-push 1"
        "vm ${vm}"
        "generation 1"
        "key ${if guestKey then "guest" else "none"}"
        "receipt ${hex 32}"
      ]
      ++ map (name: "credential ${name} plain ${hex 64}") names;
      bytes = sum (map (line: stringLength line + 1) lines);
    in
    (if guestKey then sealedString else plainString) "credferry.manifest" bytes;

  /*
    Least bytes of credentials. `guestKey`: whether secrets are sealed for the guest unless they say otherwise.
  */
  credentials =
    guestKey: all:
    sum (
      lib.mapAttrsToList (
        name: each:
        let
          bytes = if each.text == null then 1 else stringLength each.text;
          isSealed = if each.seal == null then guestKey && each.text == null else each.seal;
        in
        if isSealed then sealedString name bytes else plainString name bytes
      ) all
    );
}
