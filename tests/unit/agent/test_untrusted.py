# SPDX-License-Identifier: MIT
"""Files that another user can write are opened by one function, which nothing can lead astray or block."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from credferry.agent.untrusted import UntrustedFileError, open_untrusted, read_untrusted
from tests.support.descriptors import opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _directory(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_fifo, _link, _directory, _socket, _device])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A FIFO without a writer does not block, a link is not followed, and a device is not opened."""
    path = tmp_path / "stamp.json"
    make(path)
    with pytest.raises(UntrustedFileError):
        read_untrusted(path, limit=100)


def test_a_link_in_a_parent_is_refused(tmp_path: Path) -> None:
    """A symbolic link in any component is refused, not just in the last one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UntrustedFileError, match="symbolic link"):
        read_untrusted(tmp_path / "link/file", limit=100)


def test_links_above_the_trusted_directory_are_allowed(tmp_path: Path) -> None:
    """What root has linked on the way to the trusted directory is followed; nothing is after it."""
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "real/inner/file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    link = tmp_path / "link"
    assert read_untrusted(link / "inner/file", limit=100, below=link) == b"x"
    (tmp_path / "real/other").symlink_to("inner")
    with pytest.raises(UntrustedFileError):
        read_untrusted(link / "other/file", limit=100, below=link)


def test_the_owner_counts(tmp_path: Path) -> None:
    """A file of an owner who may not own it is refused; the message says whose it is."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert read_untrusted(path, limit=100, owners={os.getuid()}) == b"x"
    with pytest.raises(UntrustedFileError, match=f"uid {os.getuid()}"):
        read_untrusted(path, limit=100, owners={os.getuid() + 1})


def test_the_size_is_bounded(tmp_path: Path) -> None:
    """A file of exactly the limit is read, one byte more is refused and names the limit alone."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_untrusted(path, limit=10) == b"x" * 10
    with pytest.raises(UntrustedFileError, match="larger than 9 bytes"):
        read_untrusted(path, limit=9)


def test_nothing_climbs_out(tmp_path: Path) -> None:
    """A path with '..' is refused, so that nobody leaves the trusted directory by a name."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "inner").mkdir()
    with pytest.raises(UntrustedFileError, match=r"\.\."):
        read_untrusted(tmp_path / "inner" / ".." / "file", limit=9, below=tmp_path)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Neither success nor refusal leaks a descriptor."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    _fifo(tmp_path / "fifo")
    before = opened()
    os.close(open_untrusted(path))
    for refused in (tmp_path / "fifo", tmp_path / "none"):
        with pytest.raises(OSError):  # noqa: PT011 (either kind)
            open_untrusted(refused)
    assert opened() <= before


def test_a_refusal_tells_what_and_where(tmp_path: Path) -> None:
    """A refusal is an OSError with its number, its reason and the path, as callers show them."""
    (tmp_path / "file").write_bytes(b"xx")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "inner").symlink_to(tmp_path)
    _fifo(tmp_path / "fifo")
    cases = {
        "link": (errno.ELOOP, "it is a symbolic link"),
        "inner/file": (errno.ELOOP, "a symbolic link or a file is where a directory must be"),
        "file/file": (errno.ELOOP, "a symbolic link or a file is where a directory must be"),
        "fifo": (errno.EINVAL, "it is not a regular file"),
        "..": (errno.EINVAL, "the path has a '..' in it"),
        "file": (errno.EFBIG, "it is larger than 1 bytes"),
    }
    for name, (number, reason) in cases.items():
        with pytest.raises(UntrustedFileError) as caught:
            read_untrusted(tmp_path / name, limit=1, below=tmp_path)
        assert (caught.value.errno, caught.value.strerror) == (number, reason)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(UntrustedFileError) as caught:
        open_untrusted(tmp_path / "file", owners={os.getuid() + 1})
    assert caught.value.errno == errno.EPERM


def test_what_is_swapped_after_the_first_look_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind and the owner are judged again by the descriptor, which is then closed."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    real, fifo = os.stat(path), tmp_path / "fifo"  # noqa: PTH116 (its result is what is planted)
    _fifo(fifo)
    before = opened()
    monkeypatch.setattr("credferry.agent.untrusted.os.stat", lambda *_, **__: real)
    with pytest.raises(UntrustedFileError, match="not a regular file") as caught:
        open_untrusted(fifo)
    assert caught.value.filename == str(fifo)
    claimed = os.stat_result((real.st_mode, 0, 0, 1, os.getuid() + 1, 0, 1, 0, 0, 0))
    monkeypatch.setattr("credferry.agent.untrusted.os.stat", lambda *_, **__: claimed)
    with pytest.raises(UntrustedFileError, match="belongs to uid"):
        open_untrusted(path, owners={os.getuid() + 1})
    assert opened() <= before


def test_a_file_without_end_is_refused_at_once(tmp_path: Path) -> None:
    """No more than the limit is read, whatever the file's length."""
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 43)
    with pytest.raises(UntrustedFileError, match="larger than 100 bytes"):
        read_untrusted(path, limit=100)
