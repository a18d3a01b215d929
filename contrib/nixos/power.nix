# SPDX-License-Identifier: MIT
#
# Credentials that can change the guest itself: what launcher/power.py says, where the reasons and the sources stand.
{ lib }:
let
  groups = [
    "agetty"
    "cryptsetup"
    "firstboot"
    "fsck"
    "fstab"
    "getty"
    "home"
    "imds"
    "import"
    "journal"
    "login"
    "network"
    "passwd"
    "quotacheck"
    "shell"
    "ssh"
    "sysctl"
    "system"
    "systemd"
    "sysusers"
    "tmpfiles"
    "tty"
    "udev"
    "userdb"
    "vconsole"
    "vmm"
  ];

  harmless = [
    "firstboot.hostname"
    "firstboot.keymap"
    "firstboot.locale"
    "firstboot.locale-messages"
    "firstboot.timezone"
    "login.issue"
    "login.motd"
    "system.hostname"
    "vconsole.font"
    "vconsole.font_map"
    "vconsole.font_scale"
    "vconsole.font_unimap"
    "vconsole.keymap"
    "vconsole.keymap_toggle"
  ];
in
{
  inherit groups harmless;

  isPowerful =
    name:
    lib.any (group: lib.hasPrefix "${group}." name) groups && !(builtins.elem name harmless);
}
