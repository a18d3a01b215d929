# SPDX-License-Identifier: MIT
"""A real etcd of one member on loopback, for tests of the fleet's engine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final

import pytest

from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.gateway import Login, Member
from credferry.agent.fleet.model import Unavailable
from credferry.agent.fleet.transport import Tls
from tests.support.host import patience

if TYPE_CHECKING:
    from pathlib import Path

_START_SECONDS: Final = 60.0
_SECONDS: Final = 20.0
"""How long a test's engine waits for an answer: no test depends on a fast machine."""
NO_TLS: Final = Tls("/nonexistent")


def binary() -> str:
    """The path of etcd. Where there is none, the test is skipped, and fails in CI."""
    found = shutil.which("etcd")
    if found is None:
        lacking = "no etcd (run tests/support/bootstrap unit)"
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            pytest.fail(lacking, pytrace=False)
        pytest.skip(lacking)
    return found


_reserved: list[socket.socket] = []


def free_port() -> int:
    """A port of loopback that nobody uses, and that nobody else is given while this process runs.

    A socket stays bound to it and never listens. So whoever connects is refused, and only a program that
    names the port can listen there (SO_REUSEADDR, socket(7)), which etcd does each time that it starts.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    _reserved.append(made)
    return int(made.getsockname()[1])


class RealEtcd:
    """One etcd process. Its data survive `kill` and `start`."""

    def __init__(self, directory: Path, *options: str, scheme: str = "http") -> None:
        self._directory, self._options, self.scheme = directory, options, scheme
        self._ports = free_port(), free_port()
        self._metrics = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{self.scheme}://127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        """Start it, and wait until it serves."""
        peer = f"http://127.0.0.1:{self._ports[1]}"
        command = [binary(), "--name", "one", "--data-dir", str(self._directory / "data")]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"one={peer}", "--logger", "zap", "--log-level", "error"]
        command += ["--listen-metrics-urls", f"http://127.0.0.1:{self._metrics}"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS * patience()
        while not self._is_healthy():
            assert self._process.poll() is None, (self._directory / "log").read_text()
            assert time.monotonic() < deadline, (self._directory / "log").read_text()
            time.sleep(0.05)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/health", timeout=5) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP: it then accepts connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:  # a thread may go on for a moment, and answer, until all have stopped
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def member(
        self, url: str = "", tls: Tls = NO_TLS, login: Login | None = None, seconds: float = _SECONDS
    ) -> Member:
        """The agent's client for it, or for a proxy before it."""
        return Member(url or self.url, tls, login, seconds)

    def engine(self, *urls: str) -> Etcd:
        """An engine that asks it, or proxies before it."""
        return Etcd([self.member(url) for url in urls or (self.url,)])

    def put(self, key: str, value: bytes | str) -> None:
        """Write a key, as somebody with etcdctl would."""
        content = value.encode() if isinstance(value, str) else value
        call(self.member(), "/kv/put", key=b64(key), value=b64(content))

    def delete(self, key: str) -> None:
        """Remove a key."""
        call(self.member(), "/kv/deleterange", key=b64(key))

    def history(self, prefix: str) -> list[dict[bytes, bytes]]:
        """What was below a prefix at each revision, from the first to the last."""
        member = self.member()
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        last = int(call(member, "/kv/range", key="AA==")["header"]["revision"])
        return [
            {
                b64decode(pair["key"]): b64decode(pair.get("value", ""))
                for pair in call(
                    member, "/kv/range", key=b64(prefix), range_end=b64(end), revision=revision
                ).get("kvs", ())
            }
            for revision in range(1, last + 1)
        ]


class RealCluster:
    """Several etcd processes of one cluster on loopback."""

    def __init__(self, directory: Path, members: int = 3) -> None:
        self._directory = directory
        self._ports = [(free_port(), free_port()) for _ in range(members)]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members
        for number in range(members):
            self._start(number)
        deadline = time.monotonic() + _START_SECONDS * patience()
        while isinstance(found := self.engine(seconds=1.0).state("start"), Unavailable):
            assert time.monotonic() < deadline, found.reason
            time.sleep(0.1)

    @property
    def urls(self) -> list[str]:
        """The URLs for clients."""
        return [f"http://127.0.0.1:{port}" for port, _ in self._ports]

    def engine(self, seconds: float = _SECONDS) -> Etcd:
        """An engine that asks all members."""
        return Etcd([Member(url, NO_TLS, None, seconds) for url in self.urls])

    def kill(self, number: int) -> None:
        """End a member at once."""
        process, self._processes[number] = self._processes[number], None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End all members."""
        for number in range(len(self._ports)):
            self.kill(number)

    def history(self, prefix: str) -> list[int]:
        """How many keys there were below a prefix at each revision, by the first member that answers."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        number = next(at for at, each in enumerate(self._processes) if each is not None)
        member = Member(self.urls[number], NO_TLS, None, _SECONDS)
        last = int(call(member, "/kv/range", key="AA==")["header"]["revision"])
        asked = {"key": b64(prefix), "range_end": b64(end), "count_only": True}
        return [
            int(call(member, "/kv/range", **asked, revision=revision).get("count", 0))
            for revision in range(1, last + 1)
        ]

    def _start(self, number: int) -> None:
        clients, peers = (f"http://127.0.0.1:{port}" for port in self._ports[number])
        cluster = ",".join(f"m{at}=http://127.0.0.1:{each[1]}" for at, each in enumerate(self._ports))
        command = [binary(), "--name", f"m{number}", "--data-dir", str(self._directory / f"data{number}")]
        command += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
        command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
        command += ["--initial-cluster", cluster, "--logger", "zap", "--log-level", "error"]
        # A busy machine must not make the members vote again and again.
        command += ["--heartbeat-interval", "500", "--election-timeout", "5000"]
        with (self._directory / f"log{number}").open("ab") as log:
            self._processes[number] = subprocess.Popen(command, stdout=log, stderr=log)


def b64(data: str | bytes) -> str:
    """Data as etcd's gateway has them."""
    return b64encode(data.encode() if isinstance(data, str) else data).decode()


def call(member: Member, path: str, **body: object) -> dict[str, Any]:
    """Call etcd with a member's session: what the agent itself never calls."""
    document, refusal = member._post(path, body)
    assert not refusal, refusal
    answer: dict[str, Any] = document
    return answer
