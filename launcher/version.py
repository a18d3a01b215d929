# SPDX-License-Identifier: MIT
"""Which cloud-hypervisor is it? Option grammar, names and limits differ between releases."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from typing import Final

from launcher.errors import Exit, LaunchError

_VERSION: Final = re.compile(r"\s*(?:cloud-hypervisor )?v?([0-9]{1,4})((?:\.[0-9]{1,6}){0,2})")
_SECONDS: Final = 5.0
_OUTPUT_MAX: Final = 4096


def parse(text: str) -> tuple[str, int] | None:
    """``53.0`` and 53, from ``53.0``, ``v53.0`` or what ``--version`` prints."""
    found = _VERSION.match(text)
    return (found[1] + found[2], int(found[1])) if found else None


def ask(real: str) -> tuple[str, int]:
    """Version and major version of a binary, from ``--version``. Raises `LaunchError` (HYPERVISOR)."""
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
