# SPDX-License-Identifier: MIT
"""Bad input on a real host: one line that says what and what to do, a status that says which, no change."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import ExitStatus
from tests.support.cache import cache_directory
from tests.support.deployment import CONFIG, Deployment
from tests.support.host import CommandError, Host
from tests.support.installation import install
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

pytestmark = pytest.mark.host

HOST_KEY = "/var/lib/systemd/credential.secret"
SPOILED = "/etc/credferry/spoiled.toml"
SEAL_DROP_IN = "/etc/systemd/system/credferry-seal.service.d"
MIB = 1 << 20
VMS = """
[vms.web.credentials]
API_KEY = { secret = "api-key" }
NOTE = { text = "not secret" }

[vms.db.credentials]
PASSWORD = { secret = "db/password" }
"""
SECRETS = {"api-key": b"canary-web-2718", "db/password": b"canary-db-1828"}
VERBS = ("agent", "sync", "plan", "status", "check")
LOOKING = ("sync", "plan", "status")


@dataclass(frozen=True, slots=True)
class Site:
    """A host with two VMs in step with what is published, and no daemon."""

    host: Host
    deployment: Deployment
    sops: SopsNix

    def listing(self) -> dict[str, object]:
        """All that a verb could have changed: files with their content's hash, and what PID 1 runs."""
        found: dict[str, object] = {
            vm: (self.deployment.unit(vm)["InvocationID"], self.deployment.unit(vm)["ActiveState"])
            for vm in ("web", "db")
        }
        for top in ("/var/lib/credferry", "/run/secrets.d", "/run/secrets", "/run/credferry-vms", HOST_KEY):
            path = self.host.path(top, follow=False)
            # rglob goes through no symlink; those are listed with what they point at.
            for each in (path, *path.rglob("*")):
                status = each.lstat()
                content = b""
                if each.is_symlink():
                    content = bytes(each.readlink())
                elif stat.S_ISREG(status.st_mode):
                    content = each.read_bytes()
                found[f"{top}: {each}"] = (
                    *(status.st_mode, status.st_uid, status.st_gid, status.st_ino, status.st_mtime_ns),
                    hashlib.sha256(content).hexdigest(),
                )
        return found

    def refuse(
        self,
        *arguments: str,
        status: ExitStatus,
        naming: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> str:
        """Run a verb that must end with this status and one line that names all that; its output."""
        ended = self.host.run("credferry", *arguments, check=False, env=env, user=user)
        told = f"credferry {' '.join(arguments)}: {ended.stderr}"
        assert ended.returncode == status, told
        lines = ended.stderr.splitlines()
        if arguments == ("status",) and lines[0].startswith(_NO_AGENT):
            del lines[0]  # its table is of what the store says
        assert len(lines) == 1, told
        assert lines[0].startswith("credferry: ")
        for each in naming:
            assert each in lines[0], told
        assert lines[0].isprintable()
        assert_no_canary(ended.stdout + ended.stderr)
        return ended.stdout


_NO_AGENT = "credferry: the agent does not run: "


def assert_no_canary(text: str) -> None:
    """No published value, in no usual disguise."""
    for value in SECRETS.values():
        for shown in (value, value.hex().encode(), base64.b64encode(value)[:12]):
            assert shown.decode() not in text


def deploy(host: Host) -> Site:
    """Lay two light VMs out, publish, seal, and start them."""
    deployment, sops = Deployment(host), SopsNix(host)
    for name in ("web", "db"):
        deployment.add_vm(name)
    sops.publish(SECRETS)
    deployment.configure(VMS)
    deployment.credferry("agent", "--once")
    deployment.start_vm("web", "db")
    return Site(host, deployment, sops)


@pytest.fixture(scope="module")
def running(host: Host) -> Iterator[Site]:
    """One site for all tests here, which leave it as they found it."""
    site = deploy(host)
    # Does not wait for a source that is not complete: here it never will be.
    host.write(
        f"{SEAL_DROP_IN}/wait.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/credferry agent --once\n"
    )
    host.run("systemctl", "daemon-reload")
    assert_in_step(site)
    yield site
    host.run("rm", "-r", SEAL_DROP_IN)
    site.deployment.close()
    site.sops.remove()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """A site in step. It is put into step again after a test that has changed anything."""
    before = running.listing(), running.host.path(CONFIG).read_bytes()
    yield running
    is_idle = running.host.run("systemctl", "is-active", "credferry.service", check=False).returncode != 0
    if is_idle and (running.listing(), running.host.path(CONFIG).read_bytes()) == before:
        return
    running.host.run("systemctl", "stop", "credferry.service")
    running.sops.publish(SECRETS)
    running.deployment.configure(VMS)
    running.deployment.start_agent()
    running.deployment.credferry("sync")
    running.host.run("systemctl", "stop", "credferry.service")
    assert_in_step(running)


def assert_in_step(site: Site) -> None:
    """Both VMs run what is published."""
    assert {row["state"] for row in site.deployment.status().values()} == {"in step"}


def vm(key: str, value: str) -> str:
    """The configuration with one more key in a VM's own table."""
    return f"[vms.web]\n{key} = {value}\n{VMS}"


# What the file holds (None: there is none), and what the line says beside the file's name.
CONFIGURATIONS: dict[str, tuple[str | bytes | None, tuple[str, ...]]] = {
    "no file": (None, ("cannot be read", "--config")),
    "malformed": (VMS + "API_KEY = = 1\n", ("not TOML", "line 8", "toml.io")),
    "a number too long to read": (VMS + "x = " + "9" * 5000, ("not TOML", "toml.io")),
    "unknown key": (vm("chanel", '"api"'), ("vms.web: ", "chanel", "did you mean channel?")),
    "unknown key beside a secret": (
        VMS + '[vms.a.credentials]\nA = { secret = "api-key", value = "canary-web-2718" }',
        ("vms.a.credentials.A: ", "unknown field `value`"),
    ),
    "escaping path": (
        VMS + '[vms.a.credentials]\nA = { secret = "../../etc/shadow" }',
        ("vms.a.credentials.A.secret: ", "leads out of the source", "relative path"),
    ),
    "bad credential name": (
        VMS + '[vms.a.credentials]\n"A\\u001b[31m\\nB" = { text = "a" }',
        ("vms.a.credentials.A\\x1b[31m B: ", "not a credential name", "A-Z a-z 0-9"),
    ),
    "bad unit": (vm("unit", '"microvm@.service"'), ("vms.web.unit: ", "microvm@web.service")),
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_configuration(site: Site, what: str) -> None:
    """A configuration that is wrong ends each verb with its file, key and remedy; nothing changes."""
    text, naming = CONFIGURATIONS[what]
    site.host.run("rm", "-f", SPOILED)
    if text is not None:
        site.host.write(SPOILED, text)
    before = site.listing()
    for verb in VERBS:
        site.refuse(
            verb, "--config", SPOILED, status=ExitStatus.CONFIGURATION, naming=(f"{SPOILED}: ", *naming)
        )
    assert site.listing() == before


def test_the_unit_fails_once(site: Site) -> None:
    """The daemon's unit with a wrong configuration fails with its status, and is not started again."""
    site.host.write(CONFIG, "[vms.web")
    before = site.listing()
    with pytest.raises(CommandError):
        site.deployment.start_agent()
    unit = site.host.unit("credferry.service")
    assert (unit["ActiveState"], unit["ExecMainStatus"], unit["NRestarts"]) == ("failed", "78", "0")
    assert site.listing() == before


@pytest.mark.parametrize(
    "arguments",
    [
        *((verb, "--vm", "wbe") for verb in LOOKING),
        ("sync", "--vm", "web", "--vm", "wbe"),
        ("audit", "--vm", "wbe"),
        ("guest-key", "create", "wbe", "--machine-id", "1" * 32),
    ],
    ids=" ".join,
)
def test_unknown_vm(site: Site, arguments: Sequence[str]) -> None:
    """A VM that is not configured is refused with the nearest that is; nothing is done for the others."""
    before = site.listing()
    site.refuse(
        *arguments,
        status=ExitStatus.CONFIGURATION,
        naming=(f"{CONFIG}: ", "'wbe'", "[vms.wbe]", "use web"),
    )
    assert site.listing() == before


def test_no_machine_id(site: Site) -> None:
    """A guest's key for what is no machine id is not made."""
    before = site.listing()
    site.refuse(
        *("guest-key", "create", "web", "--machine-id", "none"),
        status=ExitStatus.KEY,
        naming=("'none'", "32 hexadecimal digits"),
    )
    assert site.listing() == before


def test_no_journal(site: Site) -> None:
    """An audit of a journal that is not there says so."""
    site.refuse(
        "audit", "--directory", "/nowhere", status=ExitStatus.UNAVAILABLE, naming=("/nowhere", "directory")
    )


def test_missing_source(site: Site) -> None:
    """Without a source nothing is sealed or restarted; the daemon waits for one, and says so once."""
    site.deployment.start_agent()  # and with it the first sealing, which waits for a source, but once only
    site.host.run("systemctl", "stop", "credferry.service")
    site.host.run("mv", "/run/secrets", "/run/secrets.away")
    began = time.time_ns() // 1000  # as the journal counts: others have lost their source, too
    try:
        for verb in LOOKING:
            site.refuse(verb, status=ExitStatus.SOURCE, naming=("/run/secrets: ", "source.path"))
        vms = [site.deployment.unit(each)["InvocationID"] for each in ("web", "db")]
        site.deployment.start_agent()
        lost = site.host.wait_journal(
            lambda entry: "/run/secrets" in entry["MESSAGE"] and int(entry["__REALTIME_TIMESTAMP"]) >= began,
            MESSAGE_ID="cd42da9f45b140f3844f41f2be2d0cce",
        )
        assert "source.path" in lost["MESSAGE"]
    finally:
        site.host.run("mv", "/run/secrets.away", "/run/secrets")
    site.host.wait_journal(
        lambda entry: int(entry["__REALTIME_TIMESTAMP"]) >= began,
        MESSAGE_ID="d4ea00e8f0be4990b7877fb1851f9878",
    )
    assert [site.deployment.unit(each)["InvocationID"] for each in ("web", "db")] == vms


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong about one secret of web: a value or, as ``link``, a symlink; and what is said."""

    naming: tuple[str, ...]
    value: bytes | None = None
    link: str = ""
    vms: str = VMS
    others: Mapping[str, bytes] = field(default_factory=dict)
    fifo: bool = False


REFUSALS = {
    "missing": Refusal(("is not published", "publish it, or set required = false")),
    "empty": Refusal(("is empty", "publish a value"), b""),
    "over 1 MiB": Refusal((f"limit of {MIB} bytes", "smaller"), bytes(MIB + 1)),
    "over the guest's budget": Refusal(
        ("4091 bytes", "pass fewer or smaller", "guest_systemd = 257"), b"canary" * 600
    ),
    "a link out of the source": Refusal(("leads out of the source", "follow_links"), link="/etc/hostname"),
    "a relative link out of the source": Refusal(
        ("leads out of the source", "follow_links"), link="../../../etc/hostname"
    ),
    "a directory": Refusal(
        ("is not a regular file", "publish a regular file"), others={"api-key/inner": b"canary"}
    ),
    "a FIFO": Refusal(("is not a regular file", "publish a regular file"), fifo=True),
    "no guest key": Refusal(
        ("no guest key", "credferry guest-key create web"), b"new", vms=vm("guest_key", "true")
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_vm(site: Site, what: str) -> None:
    """A VM whose secret cannot be had is refused and keeps running untouched; the others go on."""
    case = REFUSALS[what]
    site.deployment.configure(case.vms)
    site.sops.publish(
        {"db/password": f"canary-db-1828 for {what}".encode()}
        | ({"api-key": case.value} if case.value is not None else {})
        | dict(case.others)
    )
    if case.link:
        site.host.run("ln", "-s", case.link, "/run/secrets/api-key")
    if case.fifo:
        site.host.run("mkfifo", "/run/secrets/api-key")
    naming = (
        f"{CONFIG}: ",
        "vms.web: refused: ",
        "API_KEY" if "guest key" not in what else "",
        *case.naming,
    )
    before = site.listing()
    site.refuse("plan", status=ExitStatus.FAILED, naming=naming)
    rows = json.loads(site.refuse("status", "--json", status=ExitStatus.FAILED, naming=naming))
    assert [row["state"] for row in rows] == ["refused", "restart due"]
    assert site.listing() == before
    rows = json.loads(site.refuse("sync", "--json", status=ExitStatus.FAILED, naming=naming))
    assert [row["state"] for row in rows] == ["refused", "restart due"]
    after = site.listing()
    touched = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert not [key for key in touched if key in {"web", "db"} or "vms/web/" in key], "only db is sealed for"
    assert [key for key in touched if "vms/db/" in key]
    assert site.deployment.delivered("web")["API_KEY"] == SECRETS["api-key"]
    # The daemon decides the same, and says so once in the audit.
    site.deployment.start_agent()
    refused = site.host.wait_journal(
        lambda entry: all(each in entry["MESSAGE"] for each in case.naming),
        CREDFERRY_VM="web",
        MESSAGE_ID="6083fe10359e46a78d25b4dad432d3e2",
        _SYSTEMD_UNIT="credferry.service",
    )
    assert_no_canary(json.dumps(refused))
    site.deployment.wait_in_step("db")
    site.host.run("systemctl", "stop", "credferry.service")
    assert site.listing()["web"] == before["web"]


def test_a_key_that_others_can_read(site: Site) -> None:
    """Systemd would not take a key file of another mode; neither do we, and we leave it as it is."""
    site.host.run("chmod", "0644", HOST_KEY)
    try:
        assert_key_refused(site, ("mode is 0644", "accepts only 0400", f"chmod 0400 {HOST_KEY}"))
    finally:
        site.host.run("chmod", "0400", HOST_KEY)


def test_the_key_of_another_machine(site: Site) -> None:
    """A key file with another machine's header, which systemd would delete, is there afterwards."""
    content = site.host.path(HOST_KEY).read_bytes()
    site.host.run("cp", "-p", HOST_KEY, f"{HOST_KEY}.own")
    try:
        site.host.run("chmod", "0600", HOST_KEY)
        site.host.path(HOST_KEY).write_bytes(bytes(16) + content[16:])
        site.host.run("chmod", "0400", HOST_KEY)
        assert_key_refused(site, ("another machine id", "restore this host's own"))
        assert site.host.path(HOST_KEY).read_bytes() == bytes(16) + content[16:]
    finally:
        site.host.run("mv", f"{HOST_KEY}.own", HOST_KEY)


def test_not_root(site: Site) -> None:
    """Somebody else than root is refused for want of the key, and may still check the configuration."""
    assert_key_refused(site, ("Permission denied", "run as root"), user="nobody")


def assert_key_refused(site: Site, naming: Sequence[str], user: str | None = None) -> None:
    """Every verb that needs the key ends with its file and the remedy; nothing changes."""
    before = site.listing()
    for verb in (*LOOKING, "agent"):
        site.refuse(verb, status=ExitStatus.KEY, naming=(f"{HOST_KEY}: ", *naming), user=user)
    assert site.host.run("credferry", "check", user=user).stderr == ""
    assert site.listing() == before


@pytest.mark.parametrize("address", ["unix:path=/nowhere", "rubbish"])
def test_no_bus(site: Site, address: str) -> None:
    """Without a bus a verb that needs systemd says so; sealing and the rest work on."""
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": address}
    before = site.listing()
    for verb in LOOKING:
        site.refuse(
            verb, status=ExitStatus.UNAVAILABLE, naming=("system bus", "dbus.service"), env=environment
        )
    for arguments in (("check",), ("audit",), ("agent", "--once")):
        assert site.host.run("credferry", *arguments, env=environment).stderr == ""
    assert site.listing() == before


def test_a_bad_reload_changes_nothing(site: Site) -> None:
    """A configuration that is wrong at a reload leaves the daemon with the one it has."""
    site.deployment.start_agent()
    daemon = site.host.unit("credferry.service")["MainPID"]
    for text, naming in (
        (VMS + "x = 1", "vms.db.credentials.x"),
        ('machine_id_file = "/nowhere"\n' + VMS, "/nowhere"),
    ):
        site.host.write(CONFIG, text)
        ended = site.host.run("systemctl", "reload", "credferry.service", check=False)
        assert ended.returncode != 0
        site.host.wait_journal(
            lambda entry, naming=naming: (
                "keeping the previous configuration" in entry["MESSAGE"] and naming in entry["MESSAGE"]
            ),  # type: ignore[misc]  # a default binds the name
            _SYSTEMD_UNIT="credferry.service",
        )
    starts = site.deployment.starts("web")
    site.sops.publish(SECRETS | {"api-key": b"after the reload"})
    site.host.wait(lambda: site.deployment.starts("web") == starts + 1, 20, "restart of web")
    assert site.host.unit("credferry.service")["MainPID"] == daemon


def test_the_bus_goes_and_comes_back() -> None:
    """A daemon whose bus is gone keeps running and sealing; back, the restart that is due comes, once."""
    with ExitStack() as stack:
        host = stack.enter_context(Host(cache_directory()))
        install(host)
        site = deploy(host)
        site.deployment.start_agent()
        daemon = host.unit("credferry.service")["MainPID"]
        for number, is_fresh in ((1, False), (2, True)):
            host.run("systemctl", "stop", "dbus.socket", "dbus.service")
            for verb in LOOKING:
                site.refuse(verb, status=ExitStatus.UNAVAILABLE, naming=("system bus", "dbus.service"))
            if is_fresh:  # a daemon that starts without a bus does the same
                host.run("systemctl", "restart", "credferry.service")
                daemon = host.unit("credferry.service")["MainPID"]
            site.sops.publish(SECRETS | {"api-key": f"rotation {number}".encode()})
            host.wait_journal(
                lambda entry, number=number: entry.get("CREDFERRY_GENERATION") == str(number + 1),  # type: ignore[misc]  # a default binds the number
                MESSAGE_ID="21b441b55c074bce9c848be83f4f2f52",
                CREDFERRY_VM="web",
            )
            assert site.deployment.starts("web") == number
            host.run("systemctl", "start", "dbus.socket", "dbus.service")
            host.wait(lambda n=number: site.deployment.starts("web") == 1 + n, 20, "restart of web")  # type: ignore[misc]  # a default binds the number
            site.deployment.wait_in_step("web")
            assert site.deployment.delivered("web")["API_KEY"] == f"rotation {number}".encode()
            assert host.unit("credferry.service")["MainPID"] == daemon
        assert (site.deployment.starts("web"), site.deployment.starts("db")) == (3, 1)
        assert_no_canary(json.dumps(host.journal(_SYSTEMD_UNIT="credferry.service")))
