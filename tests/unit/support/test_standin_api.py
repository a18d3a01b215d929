# SPDX-License-Identifier: MIT
"""The stand-in's process without a guest: API, events, limits, signals, as the real one's."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import hypervisor
from tests.support.host import patience
from tests.support.hypervisor.harness import Hypervisor, parse_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

_RECORDED = Path(__file__).parents[2] / "data/cloud-hypervisor-v53-api.json"
_CANARY = "canary-7c1f"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The stand-in's command."""
    return hypervisor.install(tmp_path / "cloud-hypervisor")


@pytest.fixture
def light(program: Path, tmp_path: Path) -> Iterator[Hypervisor]:
    """An idle stand-in that starts no QEMU."""
    with Hypervisor(program, [], tmp_path, environment={"CREDFERRY_STANDIN_BOOT": "0"}) as running:
        yield running


def _run(program: Path, *arguments: str, version: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "CREDFERRY_STANDIN_BOOT": "0"}
    if version is not None:
        environment["CREDFERRY_STANDIN_VERSION"] = version
    return subprocess.run(
        [program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=30 * patience(),
    )


def _document(*strings: str) -> dict[str, Any]:
    return {"payload": {"kernel": "/kernel"}, "platform": {"oem_strings": list(strings)}}


def _comparable(answer: Any) -> Any:  # noqa: ANN401 (JSON)
    """An answer without what differs from run to run, and without serde's own words."""
    match answer:
        case {"pid": _, **rest}:
            return {**rest, "build_version": "v53.0"}
        case ["Failed to deserialize JSON", *_]:
            return ["Failed to deserialize JSON"]
        case {"config": {"net": [*nets], **config}, **rest}:
            return {**rest, "config": {**config, "net": [{**net, "mac": None} for net in nets]}}
        case str():
            return answer.split("\n")[0]
    return answer


def test_answers_are_those_of_the_real_one(program: Path, tmp_path: Path) -> None:
    """Nearly two hundred requests in a row get the status and the body that v53.0 gave: every state
    without a running VM, every document that microvm.nix needs, and what is refused.
    """
    exchanges = json.loads(_RECORDED.read_text(encoding="utf-8"))["exchanges"]
    wrong = []
    with Hypervisor(program, [], tmp_path) as running:
        for exchange in exchanges:
            body = exchange.get("body", "x" * exchange.get("body_of", 0)).encode()
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            head = f"{exchange['method']} /api/v1/{exchange['name']} HTTP/1.1\r\n{length}\r\n"
            received = running.exchange(head.encode() + body)
            try:
                answer = parse_answer(received)
                got: tuple[int, Any] = (answer.status, answer.body)
            except ValueError:
                got = (400, received.partition(b"\r\n\r\n")[2].decode())
            if (got[0], _comparable(got[1])) != (exchange["status"], _comparable(exchange["answer"])):
                wrong.append((exchange, got))
    assert len(exchanges) > 150
    assert wrong == []


def test_a_vm_goes_through_its_states_and_events_tell_them(light: Hypervisor) -> None:
    """Create, boot, reboot, shutdown, boot, power off: each state, status and event as in the real one."""
    secret = f"io.systemd.credential:A={_CANARY}"
    steps = [
        ("vm.create", _document(secret), 204, "Created"),
        ("vm.boot", None, 204, "Running"),
        ("vm.boot", None, 500, "Running"),
        ("vm.reboot", None, 204, "Running"),
        ("vm.shutdown", None, 204, "Created"),
        ("vm.boot", None, 204, "Running"),
    ]
    for name, document, status, state in steps:
        assert light.request("PUT", name, document).status == status, name
        info = light.request("GET", "vm.info").body
        assert info["state"] == state, name
        assert info["config"]["platform"]["oem_strings"] == [secret]
    assert light.request("PUT", "vm.power-button").status == 204
    assert light.wait_for_end() == 0
    assert not light.socket.exists()
    assert light.events == [
        "vmm/starting",
        "vm/booting",
        "vm/booted",
        "vm/rebooting",
        "vm/rebooted",
        "vm/shutdown",
        "vm/booting",
        "vm/booted",
        "vm/shutdown",
        "vm/deleted",
        "vmm/shutdown",
    ]
    assert _CANARY not in light.errors


def test_sigterm_ends_it_in_order_and_sigusr2_kills_it(program: Path, tmp_path: Path) -> None:
    """SIGTERM shuts the VM down and exits with 0; SIGUSR2 has its default action."""
    with ExitStack() as stack:
        asked, killed = (
            stack.enter_context(
                Hypervisor(
                    program,
                    ["--kernel", "/kernel"],
                    tmp_path,
                    environment={"CREDFERRY_STANDIN_BOOT": "0"},
                    label=label,
                )
            )
            for label in ("asked", "killed")
        )
        for running in (asked, killed):
            running.wait_for_event("vm/booted")
        asked.process.send_signal(signal.SIGTERM)
        assert asked.wait_for_end() == 0
        assert asked.events[-3:] == ["vm/shutdown", "vm/deleted", "vmm/shutdown"]
        killed.process.send_signal(signal.SIGUSR2)
        assert killed.wait_for_end() == -signal.SIGUSR2
        assert killed.events[-1] == "vm/booted"


def test_nothing_ends_it_while_it_creates_the_vm_again(program: Path, tmp_path: Path) -> None:
    """As the real one: SIGTERM and vmm.shutdown, each sent after ``rebooting``, act after ``rebooted``."""
    with ExitStack() as stack:
        asked, told = (
            stack.enter_context(
                Hypervisor(
                    program,
                    ["--kernel", "/kernel"],
                    tmp_path,
                    environment={"CREDFERRY_STANDIN_BOOT": "0", "CREDFERRY_STANDIN_RECREATES": "0.5"},
                    label=label,
                )
            )
            for label in ("asked", "told")
        )
        for running in (asked, told):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            running.wait_for_event("vm/booted")
            client.connect(str(running.socket))
            client.sendall(b"PUT /api/v1/vm.reboot HTTP/1.1\r\n\r\n")
            running.wait_for_event("vm/rebooting")
        told.process.send_signal(signal.SIGTERM)
        assert asked.request("PUT", "vmm.shutdown").status == 200
        for running in (asked, told):
            assert running.wait_for_end() == 0
            assert running.events[-5:] == [
                "vm/rebooting",
                "vm/rebooted",
                "vm/shutdown",
                "vm/deleted",
                "vmm/shutdown",
            ]


def test_the_wrapped_program_is_the_process_itself(light: Hypervisor) -> None:
    """The process that was started is the one that answers, so a unit's main process is the VMM; and its
    socket is its user's alone.
    """
    assert light.request("GET", "vmm.ping").body["pid"] == light.process.pid
    assert stat.S_IMODE(light.socket.stat().st_mode) & 0o077 == 0


def test_descriptors_arrive_with_the_network_device_and_survive_a_reboot(light: Hypervisor) -> None:
    """A descriptor sent with vm.add-net is open in the VMM from then on, until the VM is deleted."""
    assert light.request("PUT", "vm.create", _document()).status == 204
    with ExitStack() as stack:
        near, far = socket.socketpair()
        stack.callback(near.close)
        stack.callback(far.close)
        identity = os.fstat(far.fileno())
        added = light.request("PUT", "vm.add-net", {"tap": "ignored"}, descriptors=[far.fileno()])
        assert (added.status, added.body) == (204, None)
        wrong = light.request("PUT", "vm.add-net", {"num_queues": 4}, descriptors=[far.fileno()])
        assert (wrong.status, wrong.body[-1]) == (
            500,
            "Number of queues (4) to virtio_net does not match the number of FDs (2)",
        )
        for request in ("vm.boot", "vm.reboot"):
            assert light.request("PUT", request).status == 204
            (net,) = light.request("GET", "vm.info").body["config"]["net"]
            (held,) = net["fds"]
            seen = Path(f"/proc/{light.process.pid}/fd/{held}").stat()
            assert seen.st_ino == identity.st_ino
        assert light.request("PUT", "vm.delete").status == 204
        assert not Path(f"/proc/{light.process.pid}/fd/{held}").exists()


def test_a_share_needs_memory_that_its_server_can_map(light: Hypervisor) -> None:
    """As the real one, it refuses a virtiofs share over memory that is private to it, at boot."""
    private = _document() | {"fs": [{"tag": "t", "socket": "/s"}]}
    assert light.request("PUT", "vm.create", private).status == 204
    refused = light.request("PUT", "vm.boot")
    assert (refused.status, refused.body[-1]) == (
        500,
        "Using vhost-user requires using shared memory or huge pages",
    )
    assert light.request("PUT", "vm.delete").status == 204
    shared = private | {"memory": {"size": 64 << 20, "shared": True}}
    assert light.request("PUT", "vm.create", shared).status == 204
    assert light.request("PUT", "vm.boot").status == 204


def test_a_disk_that_is_not_there_stops_the_boot(program: Path, tmp_path: Path) -> None:
    """No guest starts without one of its disks; the error names it."""
    missing = tmp_path / "missing.img"
    document = _document() | {"payload": {"kernel": "/dev/null"}, "disks": [{"path": str(missing)}]}
    with Hypervisor(program, [], tmp_path) as running:
        assert running.request("PUT", "vm.create", document).status == 204
        refused = running.request("PUT", "vm.boot")
        assert (refused.status, refused.body[-2]) == (500, f"Failed to open disk path {missing}")


def test_inherited_descriptors_of_a_command_line_must_be_open(program: Path, tmp_path: Path) -> None:
    """``--net fd=`` takes what was inherited, and refuses to boot with what was not."""
    near, far = socket.socketpair()
    with near, far:
        command = ["--kernel", "/kernel", "--net", f"fd=[{far.fileno()}]"]
        environment = {"CREDFERRY_STANDIN_BOOT": "0"}
        with Hypervisor(
            program, command, tmp_path, environment=environment, descriptors=[far.fileno()]
        ) as running:
            running.wait_for_event("vm/booted")
        with Hypervisor(program, command, tmp_path, environment=environment, label="closed") as running:
            assert running.wait_for_end() == 1
            assert "Error calling dup() on tap fd" in running.errors


def test_a_listening_socket_and_an_event_stream_can_be_inherited(program: Path) -> None:
    """``fd=`` works for the API's socket and for the event monitor."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        # The path that pytest makes may be longer than a socket's may be.
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "inherited.sock"
        listener.bind(str(path))
        listener.listen()
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        options = ["--api-socket", f"fd={listener.fileno()}", "--event-monitor", f"fd={writing}"]
        process = subprocess.Popen([program, *options], pass_fds=[listener.fileno(), writing])
        stack.callback(process.wait)
        stack.callback(process.kill)
        os.close(writing)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20 * patience())
            client.connect(str(path))
            client.sendall(b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 \r\n")
        assert process.wait(20 * patience()) == 0
        with os.fdopen(os.dup(reading), encoding="utf-8") as events:
            told = events.read()
    assert [json.loads(event)["event"] for event in told.split("\n\n")[:-1]] == ["starting", "shutdown"]


def test_requests_may_come_in_any_number_of_pieces(light: Hypervisor) -> None:
    """Two requests in one segment, and one request byte by byte, are answered alike."""
    assert light.request("GET", "vmm.ping").status == 200
    wire = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20 * patience())
        client.connect(str(light.socket))
        client.sendall(wire + wire)
        for byte in wire:
            client.sendall(bytes([byte]))
        received = b""
        while received.count(b'"pid"') < 3:
            received += client.recv(65_536)
    assert received.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    ("arguments", "status", "texts"),
    [
        ((), 2, ["Usage:"]),
        (("--kernel", "k", "--platform", f"oem_strings=[{_CANARY}", "--api-socket", "s"), 1, [_CANARY]),
        (("--platform", "uuid=x"), 2, ["<--firmware <firmware>|--kernel <kernel>>"]),
        (
            ("--kernel", "k", "--firmware", "f"),
            1,
            ["Specifying a kernel is not supported when a firmware is provided"],
        ),
        (("--api-socket", "fd=x"), 1, ["Error parsing --api-socket", "invalid digit found in string"]),
        (("--api-socket", "fd=99"), 1, ["Bad file descriptor"]),
        (("--api-socket", "s", "--event-monitor", "x"), 1, ["unknown option: x"]),
        (("--api-socket", "s", "--event-monitor", "path=/nonexistent/x"), 1, ["No such file or directory"]),
    ],
)
def test_what_it_refuses_at_its_start(
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    texts: list[str],
) -> None:
    """Exit statuses and texts are the real one's, values in the text included."""
    monkeypatch.chdir(tmp_path)
    done = _run(program, *arguments)
    assert done.returncode == status, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr


def test_it_names_its_version_and_reads_options_as_that_version_does(program: Path) -> None:
    """``--version`` is v53.0's, or that of the version asked for; v46 does not know image_type."""
    assert _run(program, "--version").stdout.splitlines()[0] == "cloud-hypervisor v53.0"
    assert _run(program, "-V", version="46.0").stdout.splitlines()[0] == "cloud-hypervisor v46.0"
    command = ("--kernel", "/kernel", "--disk", "path=/disk,image_type=raw")
    refused = _run(program, *command, version="46.0")
    assert refused.returncode == 1
    assert "unknown option: image_type" in refused.stderr


def test_a_socket_in_use_is_not_taken_over(light: Hypervisor, program: Path) -> None:
    """A second VMM on the same path is refused, and the first one goes on serving."""
    assert light.request("GET", "vmm.ping").status == 200
    done = _run(program, "--api-socket", str(light.socket))
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert light.request("GET", "vmm.ping").status == 200
