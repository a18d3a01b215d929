# SPDX-License-Identifier: MIT
"""The command: what it explains, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher import plan as plans
from credferry.launcher.credentials import read
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import LAUNCHED, Channel, Delivery, Kind, ManifestEntry, Secret
from tests.support.host import patience
from tests.support.modules import MODULES

from .conftest import CANARY, CANARY_BASE64, ROOT, VM, credentials, sealed

if TYPE_CHECKING:
    from pathlib import Path

CASES: list[dict[str, Any]] = json.loads(
    (ROOT / "tests" / "data" / "microvm-nix-commands.json").read_text()
)["cases"]
GENERATED = [case for case in CASES if case.get("argv")]
# What cloud-hypervisor takes and the launcher does not: strings would be lost, or end the guest's table.
UNSAFE = {
    "second --platform with oem_strings slips past the check": "oem_strings occurs twice",
    "empty OEM string in the list": "empty OEM string",
}
SECRET = (Kind.PLAIN, CANARY.encode())
SEALED = (Kind.SEALED, sealed())
KERNEL = ("--kernel", "/k")


def explain(*argv: str, version: str = "53.0", **environment: str) -> subprocess.CompletedProcess[str]:
    """``--explain``, as a process."""
    return run(
        "--real", "/real/ch", "--explain", "--hypervisor-version", version, "--", *argv, **environment
    )


def run(*words: str, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process, with ``said`` on its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "credferry.launcher", *words],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(MODULES),
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * patience(),
    )


def request(case: dict[str, Any]) -> plans.Request:
    """What a case asks for."""
    version = case["cloud_hypervisor_version"]
    return plans.Request(
        real=case["argv"][0],
        argv=tuple(case["argv"][1:]),
        major=int(version.split(".")[0]),
        machine="x86_64",
        argv0=case["argv0"],
    )


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case["name"])
def test_a_generated_command_is_planned_without_loss(case: dict[str, Any]) -> None:
    """The plan that `--explain` shows: the recorded document and words, and our additions at the end."""
    if case.get("vm_config") is None or case["name"] in UNSAFE:
        with pytest.raises(LaunchError, match=UNSAFE.get(case["name"], "--|older")):
            plans.make(request(case), None)
        return
    plan = plans.make(request(case), None)
    assert plan.start.document == case["vm_config"]
    assert [{"config": n.config, "fds": list(n.fds)} for n in plan.start.add_net] == case.get("add_net", [])
    words = case["vmm_argv"][1:]
    if "--event-monitor" in words:  # ours takes its place, and copies the stream to it
        at = words.index("--event-monitor")
        assert plan.events is not None
        del words[at : at + 2]
    assert list(plan.start.words[: len(words)]) == words
    more = list(plan.start.words[len(words) :])
    assert more == (
        []
        if "--api-socket" in words
        else ["--api-socket", f"path=/run/credferry-vms/{case['host_name']}/api.sock"]
    )


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case["name"])
def test_a_generated_command_takes_credentials_in_both_channels(
    case: dict[str, Any], tmp_path: Path
) -> None:
    """Ours come after the strings that were there; the two channels give the guest the same list."""
    if case.get("vm_config") is None or case["name"] in UNSAFE:
        return
    before = case["vm_config"]["platform"].get("oem_strings", [])
    ours = [f"io.systemd.credential:OURS={SEALED[1].decode()}", "io.systemd.credential.binary:T=dA=="]
    values = {"OURS": SEALED, "T": (Kind.TEXT, b"t")}
    for channel in LAUNCHED:
        directory = tmp_path / channel.value
        credentials(directory, values, Delivery(channel=channel, guest_systemd=257), case["host_name"])
        plan = plans.make(request(case), read(directory))
        if channel is Channel.API:
            assert plan.start.body is not None
            body = json.loads(plan.start.body.reveal())
            assert body["platform"].pop("oem_strings") == [*before, *ours]
            assert body == {
                **case["vm_config"],
                "platform": {k: v for k, v in case["vm_config"]["platform"].items() if k != "oem_strings"},
            }
        else:
            merged = plans.make(
                plans.Request("ch", plan.start.words, request(case).major, "x86_64", argv0="microvm@x"), None
            )
            assert merged.start.document is not None
            assert merged.start.document["platform"]["oem_strings"] == [*before, *ours]
            expected = [w for w in case["argv"][1:] if not w.startswith(("oem_strings", "uuid="))]
            if "--event-monitor" in expected:
                at = expected.index("--event-monitor")
                del expected[at : at + 2]
            rest = [w for w in plan.start.words if not w.startswith(("oem_strings", "uuid="))]
            assert [w for w in rest if w] == [w for w in expected if w]


@pytest.mark.parametrize(
    "case",
    [case for case in GENERATED if case["cloud_hypervisor_version"] in {"35.0", "36.0", "46.0", "50.0"}],
    ids=lambda case: case["name"],
)
def test_the_command_channel_serves_every_version(case: dict[str, Any], tmp_path: Path) -> None:
    """Also those that are too old for the api channel, and with options that this version refuses."""
    credentials(
        tmp_path, {"OURS": SEALED}, Delivery(channel=Channel.COMMAND, guest_systemd=257), case["host_name"]
    )
    words = plans.make(request(case), read(tmp_path)).start.words
    at = words.index("--platform")
    assert words[at + 1].endswith(f"io.systemd.credential:OURS={SEALED[1].decode()}]")
    assert [*words[: at + 1], *words[at + 2 :]] == [*case["argv"][1 : at + 2], *case["argv"][at + 3 :]]


@pytest.mark.parametrize(
    "name",
    [
        "two CPUs, 1 GiB, vsock 3 (README style)",
        "two macvtaps and a tap between them, two CPUs",
        "event monitor descriptor",
        "socket null: no --api-socket",
        "store share, credentials, package 50.0",
    ],
)
def test_explain_shows_a_generated_command_without_credentials(name: str) -> None:
    """As a process, with argv[0] as microvm.nix's runner sets it."""
    (case,) = (case for case in CASES if case["name"] == name)
    done = explain(case["argv0"], *case["argv"][1:], version=case["cloud_hypervisor_version"])
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["channel"] == "api"
    assert shown["argv0"] == case["argv0"]
    assert shown["vm_create"] == case["vm_config"]
    assert shown["add_net"] == case.get("add_net", [])
    assert shown["vmm"][0] == "/real/ch"
    assert shown["vmm"][-2:] == ["--event-monitor", "fd=100"]
    assert shown["credentials"] == []
    assert "no credential directory" in shown["notes"][0]


@pytest.mark.parametrize("channel", LAUNCHED)
def test_explain_redacts_every_value(channel: Channel, tmp_path: Path) -> None:
    """Names and kinds are shown, values never; strings of the command line are shown as they are."""
    values = {"TOKEN": SEALED, "T": (Kind.TEXT, CANARY.encode())}
    credentials(tmp_path, values, Delivery(channel=channel))
    done = explain(
        *KERNEL, "--platform", "oem_strings=[io.systemd.credential:A=b]", CREDENTIALS_DIRECTORY=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    strings = [
        "io.systemd.credential:A=b",
        "io.systemd.credential:TOKEN=<redacted>",
        "io.systemd.credential.binary:T=<redacted>",
    ]
    if channel is Channel.API:
        assert shown["vm_create"]["platform"]["oem_strings"] == strings
    else:
        assert shown["vm_create"] is None
        assert f"oem_strings=[{','.join(strings)}]" in shown["vmm"]
    assert shown["credentials"] == [{"name": "TOKEN", "kind": "sealed"}, {"name": "T", "kind": "text"}]
    for leak in (CANARY, CANARY_BASE64, SEALED[1].decode()):
        assert leak not in done.stdout + done.stderr


REFUSALS: list[tuple[str, dict[str, Any], tuple[str, ...], Exit, tuple[str, ...]]] = [
    ("-v with plaintext", {}, (*KERNEL, "-v"), Exit.USAGE, ("-v", "API_KEY")),
    ("-vvv with plaintext", {}, (*KERNEL, "-vvv"), Exit.USAGE, ("-v", "API_KEY")),
    (
        "plaintext in argv",
        {"channel": Channel.COMMAND},
        KERNEL,
        Exit.CREDENTIALS,
        ("API_KEY", "/proc/PID/cmdline", "plaintext_in_argv"),
    ),
    (
        "-v with plaintext in argv",
        {"channel": Channel.COMMAND, "plaintext_in_argv": True},
        (*KERNEL, "-v"),
        Exit.USAGE,
        ("-v", "API_KEY"),
    ),
    ("D-Bus", {}, (*KERNEL, "--dbus-service-name", "a.b"), Exit.USAGE, ("--dbus-service-name", "API_KEY")),
    ("second --platform", {}, (*KERNEL, "--platform", "", "--platform", ""), Exit.USAGE, ("--platform",)),
    ("unknown option", {}, (*KERNEL, "--gpu", "x"), Exit.USAGE, ("--gpu",)),
    ("bad platform", {}, (*KERNEL, "--platform", 'oem_strings=[a"]'), Exit.USAGE, ("--platform",)),
    ("bad event monitor", {}, (*KERNEL, "--event-monitor", "x"), Exit.USAGE, ("--event-monitor",)),
    ("not UTF-8", {}, (*KERNEL, "--cmdline", "\udcff"), Exit.USAGE, ("UTF-8",)),
]


@pytest.mark.parametrize(
    ("what", "delivery", "argv", "status", "said"), REFUSALS, ids=[what for what, *_ in REFUSALS]
)
def test_a_refusal_is_one_line_with_the_same_status_as_a_start(
    what: str,
    delivery: dict[str, Any],
    argv: tuple[str, ...],
    status: Exit,
    said: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """Explained or started: the same line and the same exit status, and no value."""
    assert what
    credentials(tmp_path / "c", {"API_KEY": SECRET}, Delivery(**delivery))
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "c")}
    explained = explain(*argv, **environment)
    started = run("--real", "/x", "--hypervisor-version", "53", "--", *argv, **environment)
    assert explained.stderr == started.stderr
    assert explained.returncode == started.returncode == status
    assert started.stdout == ""
    answer = json.loads(explained.stdout)
    assert explained.stderr == f"credferry-launch: {answer['refused']}: {answer['hint']}\n"
    assert explained.stderr.count("\n") == 1
    assert all(part in explained.stderr for part in said)
    assert CANARY not in explained.stderr + explained.stdout
    assert CANARY_BASE64 not in explained.stderr + explained.stdout


MANY = {f"N{index}": (Kind.TEXT, b"t") for index in range(256)}
BIG = (Kind.PLAIN, CANARY.encode() + b"x" * 4096)
LIMITS: dict[str, tuple[dict[str, tuple[Kind, bytes]], dict[str, Any], str]] = {
    "256 strings": (MANY, {"guest_systemd": 257}, "at most 255 OEM strings"),
    "4091 bytes": (
        {"K": BIG},
        {},
        "credential K does not fit: all OEM strings of the VM can have 4091 bytes",
    ),
    "a body": ({"K": (Kind.PLAIN, BIG[1] * 10)}, {"guest_systemd": 257}, "accepts 51200 bytes in a request"),
    "twice": (
        {"vmm.notify": SECRET},
        {"allowed_names": ("vmm.notify",)},
        "credential vmm.notify is given twice",
    ),
    "a power": ({"ssh.authorized_keys.root": SECRET}, {}, "gives power over the guest's system"),
    "not sealed": ({"K": (Kind.SEALED, CANARY.encode())}, {}, "credential K is not sealed for the guest"),
}


@pytest.mark.parametrize("what", LIMITS)
def test_what_would_not_arrive_is_refused_before_anything_starts(what: str, tmp_path: Path) -> None:
    """One line that names the thing and the limit, exit status 65, and nothing of a value."""
    values, delivery, said = LIMITS[what]
    credentials(tmp_path, values, Delivery(**delivery))
    platform = ("--platform", "oem_strings=[io.systemd.credential:vmm.notify=vsock-stream:2:8888]")
    words = ("--real", "/x", "--hypervisor-version", "53", "--", *KERNEL, *platform)
    done = run(*words, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (Exit.CREDENTIALS, "", 1)
    assert said in done.stderr
    assert CANARY not in done.stderr
    assert CANARY_BASE64[:-4] not in done.stderr


@pytest.mark.parametrize(
    ("vm", "generation", "name", "kind"),
    [
        ("db", 7, "API_KEY", Kind.PLAIN),
        (VM, 6, "API_KEY", Kind.PLAIN),
        (VM, 7, "OTHER_KEY", Kind.PLAIN),
        (VM, 7, "API_KEY", Kind.TEXT),
    ],
    ids=["of another VM", "of an older generation", "of another name", "of another kind"],
)
def test_a_value_of_somewhere_else_is_refused(
    tmp_path: Path, vm: str, generation: int, name: str, kind: Kind
) -> None:
    """Though PID 1 has opened it. The refusal names the credential and shows neither value."""
    manifest = credentials(tmp_path, {"API_KEY": SECRET}, Delivery())
    # The same key and the same value, so that nothing but its place tells.
    other = manifest.but(
        vm=vm, generation=generation, credentials=(ManifestEntry(name, kind, "0" * 16),)
    ).bound({name: Secret(CANARY.encode())}, manifest.key)
    swapped = manifest.but(credentials=(manifest.credentials[0].but(digest=other.credentials[0].digest),))
    (tmp_path / "credferry_manifest").write_bytes(swapped.to_bytes())
    done = explain(*KERNEL, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == Exit.CREDENTIALS
    assert "credential API_KEY is not the value that was sealed for generation 7 of VM web" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_another_value_is_refused(tmp_path: Path) -> None:
    """Of any length, the empty one included; the one that was sealed is taken."""
    credentials(tmp_path, {"API_KEY": SECRET}, Delivery())
    assert explain(*KERNEL, CREDENTIALS_DIRECTORY=str(tmp_path)).returncode == 0
    for value in (b"", b"x", CANARY.encode() + b"\n", CANARY.encode()[:-1]):
        (tmp_path / "credferry_value.API_KEY").write_bytes(value)
        assert explain(*KERNEL, CREDENTIALS_DIRECTORY=str(tmp_path)).returncode == Exit.CREDENTIALS


def test_a_manifest_of_the_earlier_form_is_for_later(tmp_path: Path) -> None:
    """The agent renews the store when it starts: systemd is to try this start again until then."""
    manifest = credentials(tmp_path, {"API_KEY": SECRET}, Delivery())
    fields = json.loads(manifest.to_bytes())
    del fields["key"], fields["credentials"][0]["digest"]
    (tmp_path / "credferry_manifest").write_text(json.dumps(fields | {"version": 1}))
    done = explain(*KERNEL, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert done.returncode == Exit.LATER
    assert "has format version 1" in done.stderr


def test_another_vms_credentials_are_refused_without_being_told_the_name(tmp_path: Path) -> None:
    """microvm.nix's runner gives no --vm: the unit's own runtime directory tells."""
    credentials(tmp_path / "c", {"API_KEY": SECRET}, Delivery(), "other")
    runtime = tmp_path / "credferry-vms" / VM
    runtime.mkdir(parents=True)
    words = ("--real", "/bin/true", "--hypervisor-version", "53", "--", *KERNEL)
    done = run(*words, CREDENTIALS_DIRECTORY=str(tmp_path / "c"), RUNTIME_DIRECTORY=str(runtime))
    assert done.returncode == Exit.CREDENTIALS
    assert "the credentials are for VM other, not for web" in done.stderr


def test_plaintext_in_argv_where_the_configuration_says_so(tmp_path: Path) -> None:
    """In so many words, and only then."""
    credentials(tmp_path, {"API_KEY": SECRET}, Delivery(channel=Channel.COMMAND, plaintext_in_argv=True))
    done = explain(*KERNEL, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert json.loads(done.stdout)["vmm"][3:5] == [
        "--platform",
        "oem_strings=[io.systemd.credential.binary:API_KEY=<redacted>]",
    ]


def test_unknown_options_pass_through_the_command_channel(tmp_path: Path) -> None:
    """What the launcher does not know is cloud-hypervisor's business there."""
    credentials(tmp_path, {"TOKEN": SEALED}, Delivery(channel=Channel.COMMAND))
    odd = ("--gpu", "socket=a", "b", "--restore=x", "-x", "--disk", "path=a,odd=1")
    done = explain(*KERNEL, *odd, CREDENTIALS_DIRECTORY=str(tmp_path))
    shown = json.loads(done.stdout)["vmm"]
    assert shown[1 : 1 + len(KERNEL) + len(odd)] == [*KERNEL, *odd]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), Exit.USAGE, "--"),
        (("--",), Exit.USAGE, "--real"),
        (("--real", "/x"), Exit.USAGE, "--"),
        (("--colour", "--"), Exit.USAGE, "not known"),
        (("--real", "/x", "--vm", "../x", "--"), Exit.USAGE, "--vm"),
        (("--real", "/x", "--hypervisor-version", "new", "--"), Exit.USAGE, "--hypervisor-version"),
        (("--real", "/does/not/exist", "--", *KERNEL), Exit.HYPERVISOR, "/does/not/exist"),
        (("--real", "/bin/true", "--", *KERNEL), Exit.HYPERVISOR, "--hypervisor-version"),
        (("--real", "/x", "--hypervisor-version", "53", "--", *KERNEL), Exit.CREDENTIALS, "LoadCredential"),
    ],
)
def test_the_launchers_own_arguments(words: tuple[str, ...], status: Exit, said: str) -> None:
    """One line, one status, nothing started."""
    done = run(*words)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("missing value", "credential API_KEY is not in the unit's credentials"),
        ("missing manifest", "the manifest is not in the unit's credentials"),
        ("torn manifest", "manifest: malformed"),
        ("other VM", "not for other"),
        ("no runtime directory", "RuntimeDirectory=credferry-vms/%i"),
        ("no binary", "/does/not/exist"),
    ],
)
def test_a_start_without_what_it_needs_is_refused(spoil: str, said: str, tmp_path: Path) -> None:
    """Whatever the unit lacks is named with its remedy; nothing is started."""
    directory = tmp_path / "c"
    credentials(directory, {"API_KEY": SECRET}, Delivery())
    runtime = tmp_path / "credferry-vms" / VM
    runtime.mkdir(parents=True)
    words = ["--real", "/bin/true", "--hypervisor-version", "53", "--vm", VM]
    match spoil:
        case "missing value":
            (directory / "credferry_value.API_KEY").unlink()
        case "missing manifest":
            (directory / "credferry_manifest").unlink()
        case "torn manifest":
            (directory / "credferry_manifest").write_bytes(b'{"version":1,"vm":"' + CANARY.encode())
        case "other VM":
            words[-1] = "other"
        case "no runtime directory":
            runtime.rmdir()
        case "no binary":
            words[1] = "/does/not/exist"
    done = run(
        *words,
        "--",
        *KERNEL,
        CREDENTIALS_DIRECTORY=str(directory),
        RUNTIME_DIRECTORY=str(runtime),
    )
    assert done.returncode in set(Exit)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert CANARY not in done.stderr


def hypervisor(directory: Path, version: str) -> Path:
    """A program that says its version and counts how often it was asked."""
    path = directory / "ch"
    path.write_text(f"#!/bin/sh\necho asked >> {directory}/asked\necho cloud-hypervisor {version}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("question", ["--version", "-V"])
def test_a_question_is_answered_by_cloud_hypervisor_itself(question: str, tmp_path: Path) -> None:
    """Whoever asks what stands in its place for its version gets the real one's, without credentials."""
    done = run("--real", str(hypervisor(tmp_path, "v53.0")), "--", "ch", question)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cloud-hypervisor v53.0\n", "")


def test_the_version_is_asked_once_for_each_binary(tmp_path: Path) -> None:
    """With a cache directory of the unit; another file, even at the same path, is asked again."""
    cache = tmp_path / "cache"
    cache.mkdir()

    def shown() -> str:
        words = ("--real", str(tmp_path / "ch"), "--explain", "--", *KERNEL)
        done = run(*words, CACHE_DIRECTORY=f"{cache}:/else")
        return str(json.loads(done.stdout)["hypervisor_version"])

    hypervisor(tmp_path, "v53.0")
    assert [shown(), shown()] == ["53.0", "53.0"]
    assert (tmp_path / "asked").read_text().count("asked") == 1
    (tmp_path / "ch").unlink()
    hypervisor(tmp_path, "v52.0-dirty")
    assert [shown(), shown()] == ["52.0", "52.0"]
    assert (tmp_path / "asked").read_text().count("asked") == 2
    (cache / "hypervisor-version").write_bytes(b"\xff")
    assert shown() == "52.0"


def test_help() -> None:
    """Says how to call it."""
    assert run("--help").stdout.startswith("usage: credferry-launch --real PATH")
