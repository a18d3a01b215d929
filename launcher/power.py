# SPDX-License-Identifier: MIT
"""Names of credentials that can change the guest itself: a table, as of `READ_AT`.

A guest's systemd hands a system credential to each unit that imports it by its name. Units import whole
groups of names, and the groups grow with each release. So every name in such a group counts as powerful,
known or not. `HARMLESS` lists the known names that give no power. `contrib/nixos/power.nix` has the same
table.

Sources: systemd.system-credentials(7), the ``ImportCredential=`` lines of systemd's units and its callers of
``read_credential``; agetty(8) and login(1) of util-linux.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

READ_AT: Final = {"systemd": 262, "util-linux": "2.42"}
"""The releases that the table describes."""

GROUPS: Final = frozenset(
    {
        "agetty",  # util-linux since 2.40: agetty.autologin logs a user in without a password
        "cryptsetup",  # what unlocks the guest's volumes
        "firstboot",  # systemd-firstboot
        "fsck",  # whether and how file systems are repaired
        "fstab",  # mounts
        "getty",  # which terminals have a login prompt
        "home",  # users, and the keys that vouch for their records
        "imds",  # where systemd 261 and later ask for a cloud's data, which may be credentials
        "import",  # disk images that are downloaded and installed
        "journal",  # where the guest's logs go
        "login",  # util-linux since 2.40: login.noauth asks for no password; every getty imports login.*
        "network",  # addresses, name servers, hosts, interfaces
        "passwd",  # passwords and shells
        "quotacheck",  # whether quotas are checked
        "shell",  # becomes part of the prompt, which a shell expands
        "ssh",  # keys that may log in, and where sshd listens
        "sysctl",  # kernel settings
        "system",  # system.machine_id decides whether the guest's own credential key is deleted
        "systemd",  # units and drop-ins
        "sysusers",  # users and groups
        "tmpfiles",  # files anywhere
        "tty",  # agetty.* and login.* of one terminal, as in tty.serial.hvc0.agetty.autologin
        "udev",  # rules, which run programs
        "userdb",  # users and groups
        "vconsole",  # systemd-vconsole-setup
        "vmm",  # where the guest's systemd sends its messages
    }
)
"""The part before the first dot of the names that programs of the guest's system read."""

HARMLESS: Final = frozenset(
    {
        "firstboot.hostname",
        "firstboot.keymap",
        "firstboot.locale",
        "firstboot.locale-messages",
        "firstboot.timezone",
        "login.issue",
        "login.motd",
        "system.hostname",
        "vconsole.font",
        "vconsole.font_map",
        "vconsole.font_scale",
        "vconsole.font_unimap",
        "vconsole.keymap",
        "vconsole.keymap_toggle",
    }
)
"""Names of these groups that give no power: languages, time zones, texts, labels."""


def is_powerful(name: str) -> bool:
    """Whether a credential of this name can change the guest itself."""
    group, dot, _ = name.partition(".")
    return bool(dot) and group in GROUPS and name not in HARMLESS
