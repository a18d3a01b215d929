# SPDX-License-Identifier: MIT
"""Which cloud-hypervisor is it? Option grammar, names and limits differ between releases.

Asking takes 5 ms, and 50 where the binary is not in memory yet. Where the unit has a cache directory
(``CacheDirectory=``), the answer is kept there for as long as the file stays the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from launcher.errors import Exit, LaunchError

if TYPE_CHECKING:
    from pathlib import Path

_VERSION: Final = re.compile(r"\s*(?:cloud-hypervisor )?v?([0-9]{1,4})((?:\.[0-9]{1,6}){0,2})")
_SECONDS: Final = 5.0
_OUTPUT_MAX: Final = 4096
_CACHE_FILE: Final = "hypervisor-version"


def parse(text: str) -> tuple[str, int] | None:
    """``53.0`` and 53, from ``53.0``, ``v53.0`` or what ``--version`` prints."""
    found = _VERSION.match(text)
    return (found[1] + found[2], int(found[1])) if found else None


def ask(real: str, cache: Path | None = None) -> tuple[str, int]:
    """Version and major version of a binary, from ``--version``, or from this directory's record of it.

    Raises `LaunchError` (HYPERVISOR).
    """
    if cache is None:
        return _ask(real)
    with contextlib.suppress(OSError):
        key = _identity(real)
        known = _remembered(cache / _CACHE_FILE, key)
        if known is not None:
            return known
        found = _ask(real)
        with contextlib.suppress(OSError):
            _remember(cache / _CACHE_FILE, key, found[0])
        return found
    return _ask(real)


def _identity(real: str) -> str:
    """What changes when the binary does, on one line."""
    path = os.path.realpath(real)
    status = os.stat(path)  # noqa: PTH116 (pathlib would have to be made of it first)
    return f"{path!r} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _remembered(file: Path, key: str) -> tuple[str, int] | None:
    try:
        line, _, text = file.read_text().rstrip("\n").partition("\n")
    except (OSError, ValueError):
        return None
    return parse(text) if line == key else None


def _remember(file: Path, key: str, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(f"{key}\n{text}\n")
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _ask(real: str) -> tuple[str, int]:
    try:
        output = _run(real)
    except OSError as error:
        raise LaunchError(
            f"cloud-hypervisor cannot be started: {real}: {error.strerror}",
            hint="correct --real",
            status=Exit.HYPERVISOR,
        ) from None
    version = parse(output) if output.startswith("cloud-hypervisor ") else None
    if version is None:
        raise LaunchError(
            f"{real} --version does not say which cloud-hypervisor it is",
            hint="give its version with --hypervisor-version",
            status=Exit.HYPERVISOR,
        )
    return version


def _run(real: str) -> str:
    reading, writing = os.pipe()
    try:
        pid = os.posix_spawn(
            real,
            [real, "--version"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
            ],
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    output = b""
    deadline = time.monotonic() + _SECONDS
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    try:
        while len(output) < _OUTPUT_MAX and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(reading, _OUTPUT_MAX)
            if not data:
                break
            output += data
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)  # It has said all it was asked; a zombie does not mind.
        os.waitpid(pid, 0)
    return output.decode(errors="replace")
