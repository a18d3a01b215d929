# SPDX-License-Identifier: MIT
"""The documents, followed to the letter on a host that has nothing of ours."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from credferry.agent.audit.events import Event
from tests.support.boot import HostError
from tests.support.cache import cache_directory
from tests.support.deployment import Deployment
from tests.support.documents import Command, Step, WrittenFile, snippets, steps
from tests.support.host import Host
from tests.support.installation import CHECKOUT, install_hypervisor
from tests.support.kernel import kernel
from tests.support.package import debian_package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = CHECKOUT / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
PACKAGE = "/root/credferry_0_amd64.deb"
HYPERVISOR = "/usr/bin/cloud-hypervisor"
GUEST = "/var/lib/microvms/test-vm/current"
UNIT = "microvm@test-vm.service"
KEPT = (
    "/etc/credferry /etc/systemd/system /var/lib/credferry /var/lib/systemd/credential.secret "
    "/var/lib/microvms /run/secrets /run/secrets.d"
)
"""What the guides change."""
SOON = 30.0
WINDOW = "Sat,Sun 02:00"
"""The window of a document, in which the test may run."""

LOOKED_UP = ("audit.md", "dbus.md", "json.md", "hardening.md")
"""Pages with commands for a host as it is; each leaves it fit for the next."""
WEB = """
    cp -a /var/lib/microvms/test-vm /var/lib/microvms/web
    sed -i 's/"test-vm"/"web"/' /var/lib/microvms/web/current/vm.toml
    cp -a /etc/systemd/system/microvm@test-vm.service.d /etc/systemd/system/microvm@web.service.d
    sed 's/test-vm/web/' /etc/credferry/config.toml >>/etc/credferry/config.toml.new
    cat /etc/credferry/config.toml.new >>/etc/credferry/config.toml
    rm /etc/credferry/config.toml.new
    systemctl daemon-reload
    systemctl reload credferry.service
    credferry sync
    systemctl start microvm@web.service
    credferry sync
"""
"""A second VM like the tutorial's."""
EVIDENCE = """
    cp -a /var/lib/credferry /var/lib/systemd/credential.secret /etc/machine-id /evidence
    journalctl --sync
    cp -a "/var/log/journal/$(cat /etc/machine-id)" /evidence/journal
"""
"""What the audit's page says is to be copied."""


class Reader:
    """Somebody who does on a host what a document says, and compares what comes of it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def follow(self, document: Path) -> None:
        """Take each step of a document; an AssertionError tells at which line it went otherwise."""
        for step in steps(document):
            self._take(step, f"{document.name}:{step.line}")

    def _take(self, step: Step, where: str) -> None:
        match step:
            case WrittenFile(path=path, content=content):
                distant = datetime.now(UTC) + timedelta(hours=12)
                self.host.write(path, content.replace(WINDOW, f"{distant:%a %H}:00"))
            case Command():
                self._run(step, where)

    def _run(self, step: Command, where: str) -> None:
        printed: list[tuple[int, str]] = []

        def is_as_written() -> bool:
            printed[:] = [self._printed(step.command)]
            ((status, text),) = printed
            return status == step.status and step.agrees(text)

        if step.is_awaited:
            with suppress(HostError):
                self.host.wait(is_as_written, SOON, where)
                return
        elif is_as_written():
            return
        ((status, text),) = printed
        expected = "\n".join(step.output)
        text += self.host.last_words(step.command.split())
        raise AssertionError(
            f"{where}: {step.command}\nstatus {status}, for {step.status}\n{text}\n"
            f"--- where the document has\n{expected}"
        )

    def _printed(self, command: str) -> tuple[int, str]:
        # A shell for each, as for somebody who comes back tomorrow; both its streams in their order.
        shell = ("/bin/bash", "-c", f"cd /root; exec 2>&1; {command}")
        done = self.host.run(*shell, check=False, timeout=120, env={"DEBIAN_FRONTEND": "noninteractive"})
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def fresh() -> Iterator[Host]:
    """A host with what the tutorial's reader downloads: the package, a hypervisor, the files of a guest."""
    with Host(cache_directory()) as host:
        host.run("rm", "-f", "/usr/sbin/policy-rc.d")
        host.write(PACKAGE, debian_package().read_bytes())
        install_hypervisor(host)
        # VMs without a guest: all that the host sees of a VM, and no minutes of emulation.
        host.run("mv", HYPERVISOR, f"{HYPERVISOR}.stand-in")
        light = f'#!/bin/sh\nCREDFERRY_STANDIN_BOOT=0 exec {HYPERVISOR}.stand-in "$@"\n'
        host.write(HYPERVISOR, light, 0o755)
        host.write(f"{GUEST}/vmlinuz", kernel())
        host.write(f"{GUEST}/initrd", b"")
        yield host


@pytest.fixture(scope="module")
def taught(fresh: Host) -> Host:
    """The host after the tutorial, and what it then has, kept for those who go on from there."""
    Reader(fresh).follow(DOCS / "tutorial.md")
    fresh.run("sh", "-c", f"tar -cf /root/kept.tar {KEPT}")
    return fresh


@pytest.fixture
def host(taught: Host) -> Host:
    """The host as the tutorial left it."""
    _reset(taught)
    return taught


def test_tutorial(taught: Host) -> None:
    """From nothing to a rotation: the VM was restarted once for it, and has the second value."""
    restarted = taught.journal(MESSAGE_ID=Event.RESTARTED.value)
    assert [entry["CREDFERRY_GENERATION"] for entry in restarted] == ["2"]
    launched = taught.journal(MESSAGE_ID=Event.LAUNCHED.value)
    assert [entry["CREDFERRY_GENERATION"] for entry in launched] == ["1", "2"]
    first, second = (taught.path(f"/run/secrets.d/{each}/api-key").read_bytes() for each in (1, 2))
    assert first != second
    assert Deployment(taught).delivered("test-vm") == {"API_KEY": second, "ENVIRONMENT": b"test"}


@pytest.mark.parametrize(
    ("block", "told"),
    [("# echo one\ntwo", "one"), ("# false", "status 1, for 0"), ("# exec /nowhere", "No such file")],
)
def test_what_does_not_hold_is_told(taught: Host, tmp_path: Path, block: str, told: str) -> None:
    """A page that says something else than what happens is found out, with its line."""
    page = tmp_path / "page.md"
    page.write_text(f"```console\n{block}\n```\n")
    with pytest.raises(AssertionError, match=rf"(?s)page\.md:2: .*{told}"):
        Reader(taught).follow(page)


@pytest.mark.parametrize("document", HOW_TO, ids=lambda path: path.stem)
def test_how_to(host: Host, document: Path) -> None:
    """Each guide does what it says, on the host that the tutorial left."""
    Reader(host).follow(document)


def test_reference(host: Host) -> None:
    """What pages of the reference have operators type does what it is there for, for a VM named ``web``."""
    for contrib in ("contrib/sysusers/credferry.conf", "contrib/systemd/credferry-user.conf"):
        host.write(f"/root/checkout/{contrib}", (CHECKOUT / contrib).read_bytes())
    [(_, evidence)] = snippets(DOCS / "audit.md", "toml")
    host.write("/evidence/config.toml", evidence)
    host.run("sh", "-ec", WEB + EVIDENCE)
    for name in LOOKED_UP:
        blocks = snippets(DOCS / name, "sh")
        assert blocks
        for line, text in blocks:
            script = f"cd /root/checkout; exec 2>&1; {text}"
            done = host.run("/bin/bash", "-ec", script, check=False)
            assert done.returncode == 0, f"docs/{name}:{line}: status {done.returncode}\n{done.stdout}"


def _reset(host: Host) -> None:
    """Stop everything, put files back, start what ran: no guide's outcome reaches the next."""
    script = f"""
        systemctl stop 'microvm*@*.service' 'credferry*.service' 'publish-*' 2>/dev/null
        systemctl reset-failed
        rm -rf {KEPT} /run/credferry-vms /evidence
        dpkg --status credferry >/dev/null 2>&1 || dpkg --install {PACKAGE} >/dev/null
        systemctl stop credferry.service credferry-seal.service
        rm -rf {KEPT}
        tar -C / -xf /root/kept.tar
        # The audit's head is an older one now, which its verification would tell.
        journalctl --quiet --rotate --vacuum-size=1
        systemctl daemon-reload
        systemctl start credferry-seal.service credferry.service {UNIT}
    """
    host.run("sh", "-c", script, env={"DEBIAN_FRONTEND": "noninteractive"})
    status = Command(0, "", ("VM …", "test-vm active (running) in step …"))
    host.wait(lambda: status.agrees(host.run("credferry", "status", check=False).stdout), SOON, "in step")
