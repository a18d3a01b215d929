# SPDX-License-Identifier: MIT
"""A throwaway host: a whole systemd with its own bus, journal and credentials, gone without a trace.

It is this machine's own file system, seen through an overlay, booted by systemd-nspawn with a fresh
identity and an empty ``/etc/systemd/system``. Booting takes about a second, ending it a tenth.
Needs root. Works without pytest: ``with Host() as host: host.run("systemctl", "status")``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from tests.support.boot import ENVIRONMENT, HostError, boot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

RUN_SECONDS = 60.0
POLL_SECONDS = 0.02
PATIENCE_MAX = 6.0
_SYMLINKS_MAX = 40  # as the kernel (MAXSYMLINKS)


class CommandError(HostError):
    """A command inside the host failed; the text shows its arguments, status and standard error."""


def patience() -> float:
    """What a deadline is to be multiplied by: more than 1 where more is running than there are processors.

    A deadline ends a test that would wait for ever; it is no measure of how long something may take.
    """
    return min(PATIENCE_MAX, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))


class Deadline:
    """The end of a wait that began when this was made. It moves on if the machine gets busier meanwhile.

    The load is that of the last minute, so what it is when a wait begins says little of what is to come.
    """

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds
        self._patience = 1.0

    @property
    def seconds(self) -> float:
        """How long the whole wait may take."""
        self._patience = max(self._patience, patience())
        return self._seconds * self._patience

    @property
    def left(self) -> float:
        """Seconds until it; 0 once it has passed."""
        return max(0.0, self._began + self.seconds - time.monotonic())


def wait_until(
    predicate: Callable[[], object],
    deadline: float,
    what: str,
    *,
    rest: float = 2.0,
    pause_max: float = 1.0,
) -> None:
    """Look every few milliseconds whether the predicate holds.

    A predicate that runs a program takes a processor, which the awaited work needs. So each pause is
    ``rest`` times as long as the look before it, and at most ``pause_max`` seconds. Raises `HostError` after
    so many seconds, on a machine that is not overloaded: the last look begins when the time is over.
    """
    end = Deadline(deadline)
    while True:
        is_last = not end.left
        began = time.monotonic()
        if predicate():
            return
        if is_last:
            raise HostError(f"{what}: not within {end.seconds:.0f} s")
        time.sleep(min(pause_max, max(POLL_SECONDS, rest * (time.monotonic() - began))))


class Host:
    """One throwaway host, from `__enter__` to `__exit__`, or until the process that made it is gone."""

    def __init__(self, cache: Path, environment: Mapping[str, str] | None = None) -> None:
        """``environment`` is for its PID 1."""
        self._cache = cache
        self._environment = environment or {}
        self._stack = ExitStack()
        self._leader = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._leader = boot(self._cache, stack, self._environment)
            self._stack = stack.pop_all()
        self.run("systemctl", "is-system-running", "--wait", check=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def leader(self) -> int:
        """PID of the host's PID 1, as this machine sees it."""
        return self._leader

    def run(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float = RUN_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root or as `user`, with `stdin` as its input (else none).

        Raises `CommandError` where `check` is set and the command fails.
        """
        with self._start(arguments, env, user) as process:
            try:
                output, errors = process.communicate(stdin or "", timeout * patience())
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            why = f"{' '.join(arguments)}: status {process.returncode}: {errors.strip()}"
            raise CommandError(f"{why}\n{self.last_words(arguments)}".rstrip())
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def last_words(self, arguments: Sequence[str]) -> str:
        """The last lines in the journal about a unit whose job has failed; else empty."""
        match tuple(arguments):
            case ("systemctl", "start" | "restart" | "reload", *_, unit):
                return self.run("journalctl", "-n", "20", "-o", "cat", "-u", unit, check=False).stdout
        return ""

    def spawn(
        self, *arguments: str, env: Mapping[str, str] | None = None, user: str | None = None
    ) -> subprocess.Popen[str]:
        """Start a command inside, with pipes to its three standard streams; it ends with the host at last.

        Signals sent to what is returned reach the command.
        """
        process = self._start(arguments, env, user)
        self._stack.callback(_end, process)
        return process

    def path(self, inside: str, *, follow: bool = True) -> Path:
        """Where this machine sees a file of the host, which need not exist.

        Symlinks are followed as inside: an absolute one, such as ``/run/secrets``, would otherwise lead
        into this machine's own files. With `follow` unset the last component is taken as it stands.
        """
        root = Path(f"/proc/{self._leader}/root")
        resolved = PurePosixPath("/")
        todo = list(reversed(PurePosixPath(inside).parts[1:]))
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                resolved = resolved.parent
                continue
            seen = root / resolved.relative_to("/") / part
            if not seen.is_symlink() or (not todo and not follow):
                resolved /= part
                continue
            links += 1
            if links > _SYMLINKS_MAX:
                raise HostError(f"{inside}: too many symlinks")
            target = PurePosixPath(seen.readlink())
            if target.is_absolute():
                resolved = PurePosixPath("/")
            todo += reversed([part for part in target.parts if part != "/"])
        return root / resolved.relative_to("/")

    def write(self, inside: str, text: str | bytes, mode: int = 0o644) -> None:
        """Write a file of the host, with the directories that it needs; owned by root."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(text.encode() if isinstance(text, str) else text)

    def unit(self, name: str) -> dict[str, str]:
        """All properties of a unit, as ``systemctl show`` prints them."""
        lines = self.run("systemctl", "show", "--", name).stdout.splitlines()
        return {key: value for key, _, value in (line.partition("=") for line in lines)}

    def kill(self, unit: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the main process of a unit."""
        self.run("systemctl", "kill", "--kill-whom=main", f"--signal={number.name}", "--", unit)

    def journal(self, **matches: str) -> list[dict[str, str]]:
        """All journal entries whose fields are as given, oldest first, each with all of its fields."""
        self.run("journalctl", "--sync")
        return [_entry(line) for line in self.run(*_journalctl(matches)).stdout.split("\n") if line]

    def wait_journal(
        self, predicate: Callable[[dict[str, str]], bool], deadline: float = 10.0, **matches: str
    ) -> dict[str, str]:
        """The first journal entry, old or new, that satisfies the predicate, within so many seconds."""
        end = Deadline(deadline)
        with self._start(_journalctl(matches, "--follow", "--no-tail")) as process:
            try:
                for entry in _entries_until(process, end):
                    if predicate(entry):
                        return entry
            finally:
                process.kill()
        raise HostError(f"the journal has no such entry after {end.seconds:.0f} s: {matches}")

    def wait(self, predicate: Callable[[], object], deadline: float = 10.0, what: str = "condition") -> None:
        """Wait until the predicate holds; for what sends no event. Raises `HostError` when time is up."""
        wait_until(predicate, deadline, what)

    def _start(
        self, arguments: tuple[str, ...], env: Mapping[str, str] | None = None, user: str | None = None
    ) -> _Inside:
        enter = ["nsenter", f"--target={self._leader}", "-m", "-u", "-i", "-n", "-p", "--wd", "--"]
        # nsenter waits outside for the command inside, and may itself be killed.
        become = ["setpriv", "--pdeathsig=KILL"]
        if user:
            become += [f"--reuid={user}", f"--regid={self._group_of(user)}", "--init-groups"]
        return _Inside(
            [*enter, *become, "--", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **(env or {})},
            encoding="utf-8",
            errors="surrogateescape",
        )

    def _group_of(self, user: str) -> str:
        for line in self.path("/etc/passwd").read_text().splitlines():
            name, _, _, group, *_ = line.split(":")
            if name == user:
                return group
        raise HostError(f"the throwaway host has no user {user}")


class _Inside(subprocess.Popen[str]):
    """A command inside, started by an nsenter that waits for it and ends as it does."""

    def send_signal(self, sig: int) -> None:
        """Signal the command, not nsenter: an orphan would stay until this machine's init notices."""
        # It may not have come so far as to have the command: killed now, it could leave one behind.
        wait_until(lambda: self.poll() is not None or self._commands(), RUN_SECONDS, "a command inside")
        if self.returncode is not None:
            return
        for pid in self._commands():
            with suppress(ProcessLookupError):
                os.kill(pid, sig)

    def _commands(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children]


def _journalctl(matches: Mapping[str, str], *options: str) -> tuple[str, ...]:
    fields = (f"{name}={value}" for name, value in matches.items())
    return ("journalctl", "--quiet", "--no-pager", "--output=json", "--all", *options, *fields)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    # Not communicate(): what the command left running may hold the other ends open.
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _entry(line: str | bytes) -> dict[str, str]:
    return {name: _text(value) for name, value in json.loads(line).items()}


def _text(value: Any) -> str:  # noqa: ANN401 (journalctl's JSON: text, a list of byte values, or a list of either)
    if isinstance(value, list):
        if all(isinstance(item, int) for item in value):
            return bytes(value).decode(errors="replace")
        return "\n".join(map(_text, value))
    return str(value)


def _entries_until(process: subprocess.Popen[str], end: Deadline) -> Iterator[dict[str, str]]:
    assert process.stdout
    descriptor = process.stdout.fileno()
    pending = b""
    while left := end.left:
        if not select.select([descriptor], [], [], left)[0]:
            continue
        data = os.read(descriptor, 65536)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            yield _entry(line)
