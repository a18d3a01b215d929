# SPDX-License-Identifier: MIT
"""The version of a cloud-hypervisor binary: option grammar, names and limits differ between releases.

``--version`` takes 5 ms, or 50 ms if the binary is not in memory yet. If the unit has a cache directory
(``CacheDirectory=``), the launcher keeps the answer there until the binary changes.
"""

from __future__ import annotations

import contextlib
import os

from credferry.launcher.errors import Exit, LaunchError, failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MAJOR_DIGITS: Final = 4
_MINOR_DIGITS: Final = 6
_SECONDS: Final = 5.0
_OUTPUT_MAX: Final = 4096
_CACHE_FILE: Final = "hypervisor-version"


def parse(text: str) -> tuple[str, int] | None:
    """``53.0`` and 53, from ``53.0``, ``v53.0`` or the output of ``--version``; None for other text."""
    text = text.lstrip().removeprefix("cloud-hypervisor ").removeprefix("v")
    end = _after_digits(text, 0, _MAJOR_DIGITS)
    if not end:
        return None
    major = int(text[:end])
    for _ in range(2):
        start = end + 1
        after = _after_digits(text, start, _MINOR_DIGITS)
        if text[end:start] == "." and after > start:
            end = after
        else:
            break
    return text[:end], major


def _after_digits(text: str, start: int, most: int) -> int:
    """Index after the digits that begin at ``start``, of which at most ``most`` count."""
    ahead = text[start : start + most]
    return start + len(ahead) - len(ahead.lstrip("0123456789"))


def ask(real: str, cache: str | os.PathLike[str] | None = None) -> tuple[str, int]:
    """Version and major version of a binary, from ``--version`` or from the record in ``cache``.

    Raises `LaunchError` (HYPERVISOR).
    """
    if cache is None:
        return _ask(real)
    with contextlib.suppress(OSError):
        key = _identity(real)
        file = os.path.join(cache, _CACHE_FILE)
        known = _remembered(file, key)
        if known is not None:
            return known
        found = _ask(real)
        with contextlib.suppress(OSError):
            _remember(file, key, found[0])
        return found
    return _ask(real)


def _identity(real: str) -> str:
    """One line that changes when the binary changes: its path, inode, size and modification time."""
    path = os.path.realpath(real)
    status = os.stat(path)
    return f"{path!r} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _remembered(file: str, key: str) -> tuple[str, int] | None:
    try:
        with open(file, encoding="utf-8") as stream:
            line, _, text = stream.read().rstrip("\n").partition("\n")
    except (OSError, ValueError):
        return None
    return parse(text) if line == key else None


def _remember(file: str, key: str, text: str) -> None:
    directory, name = os.path.split(file)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(f"{key}\n{text}\n")
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _ask(real: str) -> tuple[str, int]:
    try:
        output = _run(real)
    except OSError as error:
        raise failed(
            f"cannot start cloud-hypervisor: {real}",
            error,
            hint="correct --real",
            status=Exit.HYPERVISOR,
        ) from None
    if output is None:
        raise LaunchError(
            f"{real} --version printed nothing within {_SECONDS:.0f} seconds",
            hint="a later start may succeed; or give its version with --hypervisor-version",
            status=Exit.LATER,
        )
    version = parse(output) if output.startswith("cloud-hypervisor ") else None
    if version is None:
        raise LaunchError(
            f"{real} --version does not show a version of cloud-hypervisor",
            hint="give its version with --hypervisor-version",
            status=Exit.HYPERVISOR,
        )
    return version


def _run(real: str) -> str | None:
    """The output of ``--version``, or None if none comes in time. Raises `OSError`."""
    import select  # noqa: PLC0415 (only if the version is not known already)
    import signal  # noqa: PLC0415 (likewise)
    import time  # noqa: PLC0415 (likewise)

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
    has_ended = False
    deadline = time.monotonic() + _SECONDS
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    try:
        while len(output) < _OUTPUT_MAX and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(reading, _OUTPUT_MAX)
            has_ended = not data
            if has_ended:
                break
            output += data
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)  # No effect if the program has ended already: it is a zombie.
        os.waitpid(pid, 0)
    return output.decode(errors="replace") if output or has_ended else None
