# SPDX-License-Identifier: MIT
"""Looking for secret values wherever they must not be."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self
from urllib.parse import quote_from_bytes, quote_plus

from tests.support.boot import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.support.host import Host

_ALLOWED = re.compile(
    r"/run/secrets\.d/"
    r"|/run/credentials/microvm@[^/]+\.service/credferry_value\.[^/]+\Z"
)
"""Where values are meant to be: the source, and what PID 1 shows to a VM unit's own user."""
_CHUNK = 1 << 20
_PART = 12
"""Bytes of a value that are telling by themselves: so much between its odd characters is looked for, too."""
_ENCODED_MIN = 8
"""Characters of Base64 that are no chance hit; a value should be longer than that is worth."""
_VOLATILE = ("/run", "/tmp", "/dev")
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Search:
    """Looks for values in plain, Base64, hexadecimal, URL, JSON and Python form, each also in part."""

    forms: tuple[bytes, ...]
    allowed: re.Pattern[str] = _ALLOWED

    @classmethod
    def of(cls, values: Iterable[bytes], allowed: re.Pattern[str] = _ALLOWED) -> Self:
        """A search for these values; ``allowed`` are the paths of files that may hold them."""
        parts = {part for value in values for part in _parts(value)}
        return cls(tuple(sorted({form for part in parts for form in _forms(part)})), allowed)

    def in_text(self, text: bytes) -> bool:
        """Whether a text shows any of the values."""
        return any(form in text for form in self.forms)

    def in_processes(self, host: Host) -> Iterator[str]:
        """Arguments and environments of a host's processes that show one."""
        for path in host.path("/proc").glob("[0-9]*"):
            for part in ("cmdline", "environ"):
                if self._in_file(path / part):
                    yield f"/proc/{path.name}/{part}"

    def in_volatile_files(self, host: Host) -> Iterator[str]:
        """Files that may soon be gone: below /run and wherever temporary files are made."""
        for top in _VOLATILE:
            yield from self._in_files(host.path(top), top)

    def in_written_files(self, host: Host) -> Iterator[str]:
        """Files and symbolic links of the host's root file system that were written since it booted."""
        yield from self._in_files(_written(host), "/")

    def in_journal(self, host: Host) -> Iterator[str]:
        """The journal's text: its files may hold it compressed."""
        host.run("journalctl", "--sync")
        entries = host.run("journalctl", "--output=export", "--all").stdout
        if self.in_text(entries.encode(errors="surrogateescape")):
            yield "the journal"

    def in_manager(self, host: Host) -> Iterator[str]:
        """What systemd tells of its units to everybody: settings, command lines, status texts."""
        shown = host.run("systemctl", "show", "--all", "--", "*").stdout
        if self.in_text(shown.encode(errors="surrogateescape")):
            yield "systemd's properties"

    def _in_files(self, directory: Path, top: str) -> Iterator[str]:
        for parent, directories, files in os.walk(directory):
            for each in (Path(parent, name) for name in (*directories, *files)):
                name = str(PurePosixPath(top, each.relative_to(directory)))
                if self.allowed.match(name):
                    continue
                with contextlib.suppress(OSError):  # gone meanwhile
                    target = os.readlink(each) if each.is_symlink() else ""  # noqa: PTH115 (text)
                    if self.in_text(os.fsencode(f"{name}\0{target}")):
                        yield f"the name or target of {name!a}"
                    elif not target and each.is_file() and self._in_file(each):
                        yield name

    def _in_file(self, path: Path) -> bool:
        overlap = max(map(len, self.forms), default=0)
        with contextlib.suppress(OSError), path.open("rb") as file:  # a process that has ended meanwhile
            tail = b""
            while chunk := file.read(_CHUNK):
                text = tail + chunk
                if self.in_text(text):
                    return True
                tail = text[-overlap:]
        return False


class Vigil:
    """Looks at the processes of a host all the time, in a thread, while in its context."""

    def __init__(self, host: Host, search: Search) -> None:
        self.found: set[str] = set()
        self.looks = 0
        self._host = host
        self._search = search
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.found.update(self._search.in_processes(self._host))
            self.looks += 1


def leaks(
    host: Host,
    values: Iterable[bytes],
    *,
    texts: Mapping[str, bytes] | None = None,
    allowed: re.Pattern[str] = _ALLOWED,
) -> list[str]:
    """Where any of the values is to be seen in a host, whatever its form.

    Looked through are the arguments and environment of every process, every file that was written since the
    host booted, all of /run, /tmp and /dev, names and symbolic links, the journal's text beside its
    files, what systemd tells of its units, and ``texts``, which were recorded elsewhere.
    """
    search = Search.of(values, allowed)
    found = {
        *search.in_processes(host),
        *search.in_written_files(host),
        *search.in_volatile_files(host),
        *search.in_journal(host),
        *search.in_manager(host),
        *(name for name, text in (texts or {}).items() if search.in_text(text)),
    }
    return sorted(found)


def _written(host: Host) -> Path:
    """The upper directory of the overlay that the host's root is, as a process above the host sees it."""
    mounts = Path(f"/proc/{host.leader}/mountinfo").read_text().splitlines()
    root = next(line.split() for line in mounts if line.split()[4] == "/")
    upper = dict(each.partition("=")[::2] for each in root[-1].split(","))["upperdir"]
    pid = host.leader
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        directory = Path(f"/proc/{pid}/root{upper}")
        if directory.is_dir():
            return directory
    raise HostError("what was written to the host's root file system is nowhere to be seen")


def _parts(value: bytes) -> set[bytes]:
    """A value, and what of it stays the same however its odd characters are written."""
    runs = [run for run in re.findall(rb"[A-Za-z0-9]+", value) if len(run) >= _PART]
    return {value, *(run[:_PART] for run in runs), *(run[-_PART:] for run in runs)}


def _forms(value: bytes) -> set[bytes]:
    """How a value may look, whatever stands around it: Base64 has three alignments."""
    encoded = {base64.b64encode(b"\0" * shift + value)[4 if shift else 0 : -4] for shift in range(3)}
    encoded = {each for each in encoded if len(each) >= _ENCODED_MIN}
    urlsafe = {each.translate(bytes.maketrans(b"+/", b"-_")) for each in encoded}
    hexadecimal = {value.hex().encode(), value.hex().upper().encode()}
    text = value.decode(errors="surrogateescape")
    # surrogatepass: json.dumps leaves alone what is not UTF-8.
    quoted = {json.dumps(text, ensure_ascii=ascii).encode(errors="surrogatepass") for ascii in (True, False)}  # noqa: A001 (the name of the parameter)
    quoted |= {repr(value)[1:].encode(), repr(text).encode(errors="surrogatepass")}
    escaped = {each[1:-1] for each in quoted}
    url = {quote_from_bytes(value, safe="").encode(), quote_plus(value).encode()}
    url |= {each.lower() for each in url if b"%" in each}
    return {value, *url, *encoded, *urlsafe, *hexadecimal, *escaped}
