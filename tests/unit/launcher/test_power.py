# SPDX-License-Identifier: MIT
"""Which credential names give power over a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.errors import ConfigurationError
from credferry.launcher import power
from credferry.launcher.credentials import Credential
from credferry.launcher.errors import LaunchError
from credferry.launcher.handoff import Delivery, Kind, Secret, is_credential_name, is_powerful_name
from credferry.launcher.oem import check

# What programs of systemd and util-linux read; "x" stands for any end of a name.
POWERFUL = [
    "agetty.autologin",
    "cryptsetup.fido2-pin",
    "cryptsetup.luks2-pin",
    "cryptsetup.passphrase",
    "cryptsetup.pkcs11-pin",
    "cryptsetup.tpm2-pin",
    "fsck.mode",
    "fstab.extra",
    "getty.auto",
    "getty.ttys.container",
    "getty.ttys.serial",
    "home.add-signing-key.x.public",
    "home.create.x",
    "home.register.x",
    "imds.data_url",
    "imds.key_userdata",
    "import.pull",
    "journal.forward_to_socket",
    "journal.storage",
    "login.noauth",
    "network.conf.x",
    "network.dns",
    "network.hosts",
    "network.link.x",
    "network.netdev.x",
    "network.network.x",
    "network.search_domains",
    "network.wireguard.x",
    "passwd.hashed-password.root",
    "passwd.hashed-password.x",
    "passwd.plaintext-password.root",
    "passwd.shell.root",
    "quotacheck.mode",
    "shell.prompt.prefix",
    "shell.prompt.suffix",
    "shell.welcome",
    "ssh.authorized_keys.root",
    "ssh.ephemeral-authorized_keys-all",
    "ssh.listen",
    "sysctl.extra",
    "system.machine_id",
    "systemd.extra-unit.x.service",
    "systemd.unit-dropin.x.service",
    "sysusers.extra",
    "tmpfiles.extra",
    "tty.console.agetty.autologin",
    "tty.console.login.noauth",
    "tty.container.0.login.noauth",
    "tty.serial.hvc0.agetty.autologin",
    "tty.serial.hvc0.login.noauth",
    "tty.virtual.tty1.agetty.autologin",
    "udev.conf.x",
    "udev.rules.x",
    "userdb.group.x",
    "userdb.transient.user.x",
    "userdb.user.x",
    "vmm.notify_socket",
]
UNKNOWN = [
    "agetty.new",
    "firstboot.root-password",
    "login.new",
    "network.new",
    "passwd.new",
    "ssh.new",
    "system.new",
    "systemd.new",
    "tty.new",
    "udev.new",
    "userdb.new",
    "vconsole.new",
    "vmm.new",
]
WITHOUT_POWER = [
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
]
ORDINARY = [
    "API_KEY",
    "db.password",
    "tls.key",
    "ssh",
    "login",
    "systemd",
    ".ssh.x",
    "a.ssh.x",
    "sshd.key",
    "loginx.y",
    "SSH.listen",
]


@pytest.mark.parametrize("name", [*POWERFUL, *UNKNOWN])
def test_what_programs_of_the_system_read_is_refused_on_both_sides(name: str) -> None:
    """The agent refuses the configuration and the launcher the start; both accept a name that is allowed."""
    assert is_powerful_name(name)
    quoted = f'[source]\npath = "/s"\n[vms.web]\ncredentials."{name}" = {{ text = "x" }}\n'
    with pytest.raises(ConfigurationError, match="power over the guest"):
        parse(quoted.encode(), Path("/c"))
    parse(f'{quoted}allow_names = ["{name}"]\n'.encode(), Path("/c"))
    credential = Credential(name, Kind.TEXT, Secret(b"x"))
    with pytest.raises(LaunchError, match="power over the guest"):
        check([credential], [], Delivery())
    check([credential], [], Delivery(allowed_names=(name,)))


@pytest.mark.parametrize("name", [*WITHOUT_POWER, *ORDINARY])
def test_other_names_need_no_permission(name: str) -> None:
    """Languages, labels and texts of the system, and names that only look like the system's."""
    assert not is_powerful_name(name)


def test_the_table_is_of_one_piece() -> None:
    """What is harmless belongs to a group, groups are all in the list above, and each name could be used."""
    assert set(WITHOUT_POWER) == power.HARMLESS
    assert {name.partition(".")[0] for name in power.HARMLESS} <= power.GROUPS
    assert {name.partition(".")[0] for name in (*POWERFUL, *UNKNOWN)} == power.GROUPS
    assert all(is_credential_name(name) for name in (*POWERFUL, *UNKNOWN, *WITHOUT_POWER))


def test_the_documentation_has_the_table() -> None:
    """docs/configuration.md names each group, and each name that needs no permission."""
    text = (Path(__file__).parents[3] / "docs/configuration.md").read_text(encoding="utf-8")
    (passage,) = (part for part in text.split("\n\n") if "`login.noauth`" in part)
    named = set(passage.split("`")[1::2])
    assert named >= power.GROUPS
    assert named >= power.HARMLESS
    assert str(power.READ_AT["systemd"]) in passage
    assert str(power.READ_AT["util-linux"]) in passage
