# SPDX-License-Identifier: MIT
"""Runs a hypervisor, the stand-in or a real one, for a test: its API, its console, its events, its end.

All seconds are those of a machine that is not overloaded (`tests.support.host.patience`).
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tests.support.host import Deadline, patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_QUICK_SECONDS = 20.0


class HarnessError(AssertionError):
    """What was waited for did not come; the text holds what came instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, and its body read as JSON (None if it is empty)."""

    status: int
    body: Any


class Hypervisor:
    """A hypervisor's process. Leaving the context kills it, and with it whatever it runs."""

    def __init__(
        self,
        program: Path,
        arguments: Iterable[str],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        descriptors: Iterable[int] = (),
        label: str = "vmm",
    ) -> None:
        """Start it, with its API socket and its event monitor in a directory of the test's."""
        self.socket = directory / f"{label}.sock"
        self._events = directory / f"{label}.events"
        self._errors = directory / f"{label}.stderr"
        self._console = b""
        self._buffer = b""
        own = ["--api-socket", f"path={self.socket}", "--event-monitor", f"path={self._events}"]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(program), *own, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(environment or {})},
                pass_fds=tuple(descriptors),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def console(self) -> list[str]:
        """The lines that the guest has printed so far."""
        return self._console.decode(errors="replace").replace("\r", "").split("\n")

    @property
    def errors(self) -> str:
        """What the hypervisor has written to standard error."""
        return self._errors.read_text(encoding="utf-8", errors="replace")

    @property
    def events(self) -> list[str]:
        """The events so far, as ``source/event``."""
        try:
            text = self._events.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        whole = text.split("\n\n")[:-1]
        return [f"{event['source']}/{event['event']}" for event in map(json.loads, whole)]

    def wait_for_line(self, wanted: str, seconds: float, *, times: int = 1) -> list[str]:
        """Read the console until so many lines contain a text; returns those lines."""
        deadline = Deadline(seconds)
        while len(found := [line for line in self.console[:-1] if wanted in line]) < times:
            if not self._read(deadline):
                shown = "\n".join(self.console[-25:])
                raise HarnessError(f"no line {wanted!r} on the console:\n{shown}\n{self.errors}")
        return found

    def wait_for_end(self, seconds: float = _QUICK_SECONDS) -> int:
        """Exit status, once the hypervisor has ended; the console is read to its end."""
        deadline = Deadline(seconds)
        while self._read(deadline):
            pass
        try:
            return self.process.wait(deadline.left)
        except subprocess.TimeoutExpired:
            shown = "\n".join(self.console[-25:])
            raise HarnessError(f"it does not end; events {self.events}; console:\n{shown}") from None

    def wait_for_event(self, wanted: str, seconds: float = _QUICK_SECONDS) -> None:
        """Wait until an event, as ``source/event``, has been reported."""
        self._poll(lambda: wanted in self.events, seconds, f"no event {wanted}")

    def request(
        self,
        method: str,
        name: str,
        document: object = None,
        *,
        descriptors: Iterable[int] = (),
        seconds: float = 90.0,
    ) -> Answer:
        """One request to ``/api/v1/NAME`` on a connection of its own; waits for the socket first."""
        body = b"" if document is None else json.dumps(document).encode()
        length = "" if document is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode()
        return parse_answer(self.exchange(head + body, descriptors=descriptors, seconds=seconds))

    def exchange(self, sent: bytes, *, descriptors: Iterable[int] = (), seconds: float = 90.0) -> bytes:
        """Send bytes to the API's socket; returns the bytes of the first answer."""
        with socket.socket(socket.AF_UNIX) as stream:
            self._poll(lambda: _connects(stream, self.socket), _QUICK_SECONDS, "no API socket")
            stream.settimeout(seconds * patience())
            handed = list(descriptors)
            if handed:
                socket.send_fds(stream, [sent], handed)
            else:
                stream.sendall(sent)
            received = b""
            while not _is_whole(received):
                data = stream.recv(65_536)
                if not data:
                    raise HarnessError(f"the API hung up after {received!r}\n{self.errors}")
                received += data
        return received

    def _read(self, deadline: Deadline) -> bool:
        """Take in what the console says next; False at its end or at the deadline."""
        if self.process.stdout is None:
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not selector.select(deadline.left):
                if not deadline.left:
                    return False
        data = self.process.stdout.read1(65_536)  # type: ignore[attr-defined]  # a pipe's is buffered
        self._console += data
        return bool(data)

    def _poll(self, ready: Callable[[], bool], seconds: float, failed: str) -> None:
        deadline = Deadline(seconds)
        while not ready():
            if not deadline.left or self.process.poll() is not None:
                raise HarnessError(f"{failed}; events {self.events}\n{self.errors}")
            # A file and a socket that somebody else makes: there is nothing to wait on but time.
            time.sleep(0.01)


def parse_answer(received: bytes) -> Answer:
    """Read one HTTP answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), json.loads(body) if body else None)


def _connects(stream: socket.socket, path: Path) -> bool:
    try:
        stream.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *([0-9]+)", head)
    return bool(separator) and len(body) >= (int(length[1]) if length else 0)
