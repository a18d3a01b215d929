# SPDX-License-Identifier: MIT
"""What will be started: decided from a command line and a generation, in the process itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from credferry.launcher import channels, initrd
from credferry.launcher import plan as plans
from credferry.launcher.credentials import Credential, Delivered
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import (
    LAUNCHED,
    PUSH_MANIFEST,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
)

from .conftest import CANARY, CANARY_BASE64, VM, sealed

NOTIFY = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888"
KERNEL = ("--kernel", "/k")
SECRET = Credential("KEY", Kind.PLAIN, Secret(CANARY.encode()))
SEALED = Credential("TOKEN", Kind.SEALED, Secret(sealed()))
TEXT = Credential("T", Kind.TEXT, Secret(b"t"))
TOKEN = f"io.systemd.credential:TOKEN={sealed().decode()}"
PRIVATE = "/run/credferry-vms/web/api.sock"


def plan(
    *credentials: Credential,
    argv: tuple[str, ...] = KERNEL,
    request: dict[str, Any] | None = None,
    **delivery: Any,  # noqa: ANN401 (settings of a delivery)
) -> plans.Plan:
    """The plan for a command line with these credentials."""
    entries = tuple(ManifestEntry(each.name, each.kind, "0" * 16) for each in credentials)
    manifest = Manifest(VM, 3, "a" * 64, "b" * 32, Delivery(**delivery), entries)
    asked = plans.Request(
        **{"real": "/bin/ch", "argv": argv, "major": 53, "machine": "x86_64", **(request or {})}
    )
    return plans.make(asked, Delivered(manifest, credentials))


def refused(*credentials: Credential, **how: Any) -> LaunchError:  # noqa: ANN401 (as `plan` takes it)
    """The refusal of such a plan, which shows no value."""
    with pytest.raises(LaunchError) as caught:
        plan(*credentials, **how)
    assert CANARY not in str(caught.value)
    assert CANARY_BASE64 not in str(caught.value)
    return caught.value


def test_what_a_unit_reads_itself_is_not_passed_on() -> None:
    """With `channel = "directory"` the launcher starts nothing, and says how to go on."""
    said = refused(SECRET, channel=Channel.DIRECTORY)
    assert said.status is Exit.CREDENTIALS
    assert "the launcher passes no credentials on" in str(said)
    assert f"[vms.{VM}]" in said.hint


def test_the_api_channel_sends_what_it_does_not_show() -> None:
    """The body has the values behind the strings that were there; document and words have none."""
    made = plan(SECRET, SEALED, argv=(*KERNEL, "--platform", f"oem_strings=[{NOTIFY}],uuid=u"))
    assert made.channel is Channel.API
    assert made.start.body is not None
    body = json.loads(made.start.body.reveal())
    ours = f"io.systemd.credential.binary:KEY={CANARY_BASE64}"
    assert body["platform"] == {"system_uuid": "u", "oem_strings": [NOTIFY, ours, TOKEN]}
    assert made.start.document is not None
    assert made.start.document["platform"]["oem_strings"] == [
        NOTIFY,
        "io.systemd.credential.binary:KEY=<redacted>",
        "io.systemd.credential:TOKEN=<redacted>",
    ]
    assert made.start.words == made.start.shown == ("--api-socket", f"path={PRIVATE}")
    assert (made.start.private_api, made.start.api) == (True, channels.Endpoint(PRIVATE, None))
    assert made.other_oem_bytes == len(NOTIFY) + 1
    assert (made.vm, made.argv0, made.notes) == (VM, "microvm@web", ())
    assert made.start.body.reveal().count(b" ") == 0


def test_the_command_channel_merges_what_it_does_not_show() -> None:
    """The words have the values, those to be shown have not; there is no document and no body."""
    argv = (*KERNEL, "--platform", f"oem_strings=[{NOTIFY}]", "--cpus=boot=1")
    made = plan(SEALED, TEXT, argv=argv, channel=Channel.COMMAND)
    text = "io.systemd.credential.binary:T"
    assert made.start.words == (
        *KERNEL,
        "--platform",
        f"oem_strings=[{NOTIFY},{TOKEN},{text}=dA==]",
        "--cpus=boot=1",
    )
    assert made.start.shown == (
        *KERNEL,
        "--platform",
        f"oem_strings=[{NOTIFY},io.systemd.credential:TOKEN=<redacted>,{text}=<redacted>]",
        "--cpus=boot=1",
    )
    assert (made.start.document, made.start.body, made.start.private_api) == (None, None, False)
    assert made.start.api is None
    assert made.other_oem_bytes == len(NOTIFY) + 1


def test_the_command_channel_adds_a_platform_at_the_end() -> None:
    """Where there is none; and where nothing is to be added, nothing changes."""
    made = plan(SEALED, channel=Channel.COMMAND)
    assert made.start.words == (*KERNEL, "--platform", f"oem_strings=[{TOKEN}]")
    argv = (*KERNEL, "--platform=uuid=u", "--odd", "x")
    assert plan(argv=argv, channel=Channel.COMMAND).start.words == argv


@pytest.mark.parametrize("channel", LAUNCHED)
def test_an_argument_that_the_kernel_does_not_take_is_refused_in_the_command_channel(
    channel: Channel,
) -> None:
    """131,071 bytes are taken, and one more is not; the api channel has a limit of its own."""
    fits = (*KERNEL, "--cmdline", "x" * 131_071)
    too_long = (*KERNEL, "--cmdline", "x" * 131_072)
    if channel is Channel.COMMAND:
        assert plan(SEALED, argv=fits, channel=channel).start.words[:4] == fits
        error = refused(SEALED, argv=too_long, channel=channel)
        assert "--cmdline does not fit: one argument can have 131072 bytes" in str(error)
    else:
        error = refused(SEALED, argv=fits, channel=channel)
        assert "51200 bytes that cloud-hypervisor 53 accepts in a request" in str(error)
    assert error.status is Exit.CREDENTIALS


@pytest.mark.parametrize("channel", LAUNCHED)
@pytest.mark.parametrize("word", ["-v", "-vv", "--dbus-service-name=a", "--dbus-system-bus"])
def test_what_shows_a_secret_is_refused_for_readable_ones_alone(channel: Channel, word: str) -> None:
    """A log and a bus would show what is readable; what is sealed, and texts, they may show."""
    how: dict[str, Any] = {"argv": (*KERNEL, word), "channel": channel, "plaintext_in_argv": True}
    error = refused(SEALED, TEXT, SECRET, **how)
    assert error.status is Exit.USAGE
    assert "credential KEY" in str(error)
    assert word.partition("=")[0][:2] in str(error)
    if channel is Channel.COMMAND:
        assert word in plan(SEALED, TEXT, **how).start.words
    elif word.startswith("-v"):
        assert plan(SEALED, TEXT, **how).start.words[0] == word


def test_readable_secrets_need_a_word_to_be_in_an_argument_vector() -> None:
    """Refused by name; with the configuration's word, they are there; a text needs none."""
    error = refused(SEALED, SECRET, channel=Channel.COMMAND)
    assert (error.status, "credential KEY" in str(error)) == (Exit.CREDENTIALS, True)
    allowed = plan(SECRET, channel=Channel.COMMAND, plaintext_in_argv=True)
    assert CANARY_BASE64 in allowed.start.words[-1]
    assert "dA==" in plan(TEXT, channel=Channel.COMMAND).start.words[-1]
    assert plan(SECRET).channel is Channel.API


@pytest.mark.parametrize(
    ("value", "api"),
    [
        ("path=/a.sock", channels.Endpoint("/a.sock", None)),
        ("own.sock", channels.Endpoint("own.sock", None)),
        ("fd=7", channels.Endpoint(None, 7)),
        ("fd=2147483647", channels.Endpoint(None, 2147483647)),
        ("fd=2147483648", channels.Endpoint(None, -1)),
        ("fd=x", channels.Endpoint(None, -1)),
        ("fd=٣", channels.Endpoint(None, -1)),
    ],
)
@pytest.mark.parametrize("channel", LAUNCHED)
def test_an_api_socket_stays_as_it_is(channel: Channel, value: str, api: channels.Endpoint) -> None:
    """A path, a bare path, a descriptor; a number that can be none is one that the start refuses."""
    made = plan(SEALED, argv=(*KERNEL, "--api-socket", value), channel=channel)
    assert (made.start.api, made.start.private_api) == (api, False)
    at = made.start.words.index("--api-socket")
    assert made.start.words[at + 1] == value


@pytest.mark.parametrize(
    ("value", "events"),
    [("path=/e", channels.Endpoint("/e", None)), ("fd=9", channels.Endpoint(None, 9))],
)
@pytest.mark.parametrize("channel", LAUNCHED)
def test_an_event_monitor_is_ours_then(channel: Channel, value: str, events: channels.Endpoint) -> None:
    """The launcher's own takes its place among the words; the plan says where to copy to."""
    made = plan(SEALED, argv=(*KERNEL, "--event-monitor", value), channel=channel)
    assert made.events == events
    assert not any("event-monitor" in word for word in made.start.words)
    assert plan(SEALED, channel=channel).events is None


@pytest.mark.parametrize("value", ["/bare", "x=1", "path="])
def test_an_event_monitor_without_a_place_is_refused(value: str) -> None:
    """It has no bare form in cloud-hypervisor either."""
    error = refused(SEALED, argv=(*KERNEL, "--event-monitor", value))
    assert (error.status, "--event-monitor has no path=" in str(error)) == (Exit.USAGE, True)


@pytest.mark.parametrize("channel", LAUNCHED)
def test_sealed_values_go_into_the_initrd_where_that_is_wanted(channel: Channel) -> None:
    """The command names the copy, and the plan whose it is; what is not sealed stays an OEM string."""
    argv = (*KERNEL, "--initramfs", "/own", "--memory", "size=1G")
    made = plan(SEALED, TEXT, argv=argv, channel=channel, initrd=True)
    assert made.initrd == plans.Initrd("/own", (SEALED,))
    if channel is Channel.COMMAND:
        at = made.start.words.index("--initramfs")
        assert made.start.words[at + 1] == initrd.PATH
        assert "TOKEN" not in str(made.start.words)
        assert "binary:T=dA==" in str(made.start.words)
        assert made.start.words[-4:-2] == ("--memory", "size=1G")
    else:
        assert made.start.document is not None
        assert made.start.document["payload"]["initramfs"] == initrd.PATH
        assert made.start.document["platform"]["oem_strings"] == [
            "io.systemd.credential.binary:T=<redacted>"
        ]


def test_without_sealed_values_the_initramfs_stays_as_it_is() -> None:
    """Nothing is copied; without an initramfs, or with firmware, sealed ones are refused."""
    argv = (*KERNEL, "--initramfs", "/own")
    made = plan(TEXT, argv=argv, initrd=True, channel=Channel.COMMAND)
    assert (made.initrd, made.start.words[:4]) == (None, argv)
    sent = plan(SEALED, argv=argv, channel=Channel.COMMAND)
    assert sent.initrd is None
    assert sent.delivered is not None
    for without in (
        KERNEL,
        ("--firmware", "/f", "--initramfs", "/own"),
        ("--igvm", "/i", "--initramfs", "/own"),
    ):
        error = refused(SEALED, argv=without, initrd=True)
        assert (error.status, "could carry credential TOKEN" in str(error)) == (Exit.USAGE, True)


@pytest.mark.parametrize(
    ("request_", "vm", "argv0"),
    [
        ({}, None, "ch"),
        ({"vm": "db"}, "db", "microvm@db"),
        ({"argv0": "microvm@db"}, "db", "microvm@db"),
        ({"argv0": "other"}, None, "other"),
        ({"argv0": "microvm@db", "vm": "web"}, "web", "microvm@db"),
    ],
    ids=str,
)
def test_whose_plan_it_is_without_credentials(request_: dict[str, Any], vm: str | None, argv0: str) -> None:
    """By --vm, or by the name that microvm.nix runs its hypervisor under; in the api channel."""
    made = plans.make(plans.Request("/bin/ch", KERNEL, 53, "x86_64", **request_), None)
    assert (made.vm, made.argv0, made.channel) == (vm, argv0, Channel.API)
    assert made.start.api == channels.Endpoint(f"/run/credferry-vms/{vm or 'VM'}/api.sock", None)
    assert made.start.document is not None
    assert "platform" not in made.start.document
    assert len(made.notes) == 1
    assert made.delivered is None


def test_another_vms_credentials_are_refused() -> None:
    """Where the name is said and is not the manifest's; otherwise the manifest's counts."""
    error = refused(SEALED, request={"vm": "db"})
    assert (error.status, "for VM web, not for db" in str(error)) == (
        Exit.CREDENTIALS,
        True,
    )
    assert plan(SEALED, request={"vm": VM}).vm == VM
    assert plan(SEALED, request={"argv0": "microvm@db"}).vm == VM
    assert plan(SEALED, request={"argv0": "microvm@db"}).argv0 == "microvm@db"


def test_what_a_spec_adds_reaches_the_start() -> None:
    """Runtime directory, notify socket and the sockets to be removed."""
    made = plan(SEALED, request={"runtime": "/r", "notify": "n_8888", "sockets": ("a", "b")})
    assert made.start.api == channels.Endpoint("/r/api.sock", None)
    assert (made.notify, made.sockets) == ("n_8888", ("a", "b"))


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("--vsock", "cid=3,socket=/run/web.vsock"), "/run/web.vsock"),
        (('--vsock=socket="/run/a,b",cid=3',), "/run/a,b"),
        (("--vsock", "cid=3"), None),
        (("--vsock", "cid=[3"), None),
        ((), None),
    ],
)
def test_the_socket_of_the_vms_vsock_is_known(words: tuple[str, ...], path: str | None) -> None:
    """A push finds the guest by it; what cloud-hypervisor refuses is none, and not this program's error."""
    assert plan(SEALED, argv=(*KERNEL, *words), channel=Channel.COMMAND).vsock == path


def test_landlock_is_noted_where_it_binds_less() -> None:
    """In the api channel alone, and with the rules in the document."""
    argv = (*KERNEL, "--landlock", "--landlock-rules", "path=/a,access=rw")
    made = plan(SEALED, argv=argv)
    assert ["--landlock" in note for note in made.notes] == [True]
    assert made.start.document is not None
    assert made.start.document["landlock_enable"] is True
    assert made.start.document["landlock_rules"] == [{"path": "/a", "access": "rw"}]
    assert plan(SEALED, argv=argv, channel=Channel.COMMAND).notes == ()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"argv": (*KERNEL, "--platform", 'oem_strings=["a]')}, "--platform cannot be read"),
        ({"argv": (*KERNEL, "--platform", "oem_strings=[a],oem_strings=[b]")}, "--platform cannot be read"),
        ({"argv": (*KERNEL, "--cmdline", "\udcff")}, "not UTF-8"),
        ({"argv": (*KERNEL, "stray")}, "belongs to no option"),
    ],
)
@pytest.mark.parametrize("channel", LAUNCHED)
def test_a_command_line_that_cannot_be_read_is_refused(
    channel: Channel, how: dict[str, Any], said: str
) -> None:
    """With status 64, in both channels."""
    error = refused(SEALED, channel=channel, **how)
    assert (error.status, said in str(error)) == (Exit.USAGE, True)


@pytest.mark.parametrize(("major", "is_noted"), [(49, True), (50, False)])
def test_a_hypervisor_that_is_too_old_for_pushes_is_noted(major: int, is_noted: bool) -> None:
    """Only where the VM is live: the VM starts, and the note says what to install."""
    live = Credential(PUSH_MANIFEST, Kind.SEALED, Secret(sealed()))
    made = plan(SEALED, live, request={"major": major})
    assert ["install 50 or later" in note for note in made.notes] == [True] * is_noted
    assert plan(SEALED, request={"major": major}).notes == ()


def test_a_machine_without_smbios_is_refused_where_there_are_credentials() -> None:
    """Without credentials the machine does not matter."""
    manifest = Manifest(VM, 3, "a" * 64, "b" * 32, Delivery(), ())
    asked = plans.Request("/bin/ch", KERNEL, 53, "aarch64")
    with pytest.raises(LaunchError, match="aarch64"):
        plans.make(asked, Delivered(manifest, (SEALED,)))
    assert plans.make(asked, None).start.document is not None
