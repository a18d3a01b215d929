# SPDX-License-Identifier: MIT
"""Root's helpers take nothing from where somebody else could have put it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from launcher import trust
from launcher.errors import Exit, LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root's helpers are judged, and only root can chown"
)
NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A VM's directory of root's: ``current`` leads to a generation with a file in it."""
    home = tmp_path / "vm"
    (home / "one").mkdir(parents=True)
    (home / "one/vm.toml").write_text("spec")
    (home / "current").symlink_to("one")
    return home


def test_what_is_roots_is_opened(tree: Path) -> None:
    """Links of root's are followed, relative and absolute ones, and the content comes back."""
    (tree / "absolute").symlink_to(tree / "current")
    for way in ("current", "absolute", "one/../current"):
        with os.fdopen(trust.open_file(str(tree / way / "vm.toml"))) as file:
            assert file.read() == "spec"


FAULTS: dict[str, Callable[[Path], None]] = {
    "the directory is the user's": lambda home: os.chown(home, NOBODY, NOBODY),
    "its target is the user's": lambda home: os.chown(home / "one", NOBODY, NOBODY),
    "the link is the user's": lambda home: os.chown(home / "current", NOBODY, NOBODY, follow_symlinks=False),
    "the file is the user's": lambda home: os.chown(home / "one/vm.toml", NOBODY, NOBODY),
    "the directory is writable for all": lambda home: home.chmod(0o777),
    "the target is writable for a group": lambda home: (home / "one").chmod(0o775),
    "the file is writable for all": lambda home: (home / "one/vm.toml").chmod(0o666),
}


@pytest.mark.parametrize("spoil", FAULTS.values(), ids=FAULTS.keys())
def test_what_others_can_change_is_refused(tree: Path, spoil: Callable[[Path], None]) -> None:
    """Every component counts, links and what they lead to included; the message names it and the remedy."""
    spoil(tree)
    with pytest.raises(LaunchError) as caught:
        trust.open_file(str(tree / "current/vm.toml"))
    assert caught.value.status is Exit.USAGE
    assert str(tree) in str(caught.value)
    assert "chown root:root" in caught.value.hint


def test_a_link_out_is_judged_where_it_leads(tree: Path, tmp_path: Path) -> None:
    """A link of root's into a user's directory is refused: the user decides what is there."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "vm.toml").write_text("spec")
    os.chown(theirs, NOBODY, NOBODY)
    (tree / "current").unlink()
    (tree / "current").symlink_to(theirs)
    with pytest.raises(LaunchError, match="theirs"):
        trust.open_file(str(tree / "current/vm.toml"))


def test_a_sticky_directory_keeps_roots_entries(tree: Path) -> None:
    """In a directory such as /tmp nobody can replace what is root's."""
    tree.chmod(0o1777)
    os.close(trust.open_file(str(tree / "current/vm.toml")))


def test_a_fifo_and_a_loop_end_at_once(tree: Path) -> None:
    """Neither a FIFO nor links in a circle keep root's helper waiting."""
    os.mkfifo(tree / "one/fifo")
    with pytest.raises(LaunchError, match="not a regular file"):
        trust.open_file(str(tree / "one/fifo"))
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        trust.open_file(str(tree / "a"))


def test_directories_are_judged_the_same_way(tree: Path) -> None:
    """A directory for sockets of root's is root's, and on a path of root's."""
    trust.check_directory(str(tree / "current"))
    os.chown(tree / "one", NOBODY, NOBODY)
    with pytest.raises(LaunchError):
        trust.check_directory(str(tree / "current"))


def test_no_descriptor_is_left_open(tree: Path) -> None:
    """Neither a success nor a refusal leaks a descriptor."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a count of names)
    os.close(trust.open_file(str(tree / "current/vm.toml")))
    os.chown(tree / "one", NOBODY, NOBODY)
    with pytest.raises(LaunchError):
        trust.open_file(str(tree / "current/vm.toml"))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
