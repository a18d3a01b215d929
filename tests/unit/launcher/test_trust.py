# SPDX-License-Identifier: MIT
"""Root's helpers take nothing from where somebody else could have put it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from credferry.launcher import trust
from credferry.launcher.errors import Exit, LaunchError
from tests.support.descriptors import opened

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
    with pytest.raises(LaunchError, match=f"^{tree / 'one/fifo'} is not a regular file"):
        trust.open_file(str(tree / "one/fifo"))
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        trust.open_file(str(tree / "a"))


def test_directories_are_judged_the_same_way(tree: Path) -> None:
    """A directory for sockets of root's is root's, and on a path of root's."""
    trust.check_directory(str(tree / "current"))
    with pytest.raises(LaunchError, match=f"^{tree / 'current/vm.toml'} is not a directory"):
        trust.check_directory(str(tree / "current/vm.toml"))
    os.chown(tree / "one", NOBODY, NOBODY)
    with pytest.raises(LaunchError):
        trust.check_directory(str(tree / "current"))


def test_no_descriptor_is_left_open(tree: Path) -> None:
    """Neither a success nor a refusal leaks a descriptor."""
    (tree / "absolute").symlink_to(tree / "current")
    before = opened()
    os.close(trust.open_file(str(tree / "current/vm.toml")))
    os.close(trust.open_file(str(tree / "absolute/vm.toml")))
    os.chown(tree / "one", NOBODY, NOBODY)
    with pytest.raises(LaunchError):
        trust.open_file(str(tree / "current/vm.toml"))
    assert opened() <= before


@pytest.mark.parametrize(
    "target",
    [
        "./../vm/one",
        "../vm/./one",
        "../vm/two/../one",
        "/..{tree}/one",
        "/../..{tree}/one",
        "/usr/..{tree}/one",
    ],
)
def test_dots_in_a_link_lead_where_the_kernel_goes(tree: Path, target: str) -> None:
    """Up from a directory is its parent, and up from the root is the root."""
    (tree / "two").mkdir()
    (tree / "way").symlink_to(target.format(tree=tree))
    with os.fdopen(trust.open_file(str(tree / "way/vm.toml"))) as file:
        assert file.read() == "spec"


def test_a_component_is_named_without_the_way_to_it(tree: Path) -> None:
    """The operator reads the path of what is to be mended, and not the links that led there."""
    (tree / "way").symlink_to("../vm/one")
    os.chown(tree / "one", NOBODY, NOBODY)
    with pytest.raises(LaunchError, match=f"^{tree / 'one'} belongs to uid {NOBODY}"):
        trust.open_file(str(tree / "way/vm.toml"))


def test_as_many_links_as_the_kernel_follows(tree: Path) -> None:
    """Forty are followed; with one more the path is a loop, as the kernel says it."""
    (tree / "link1").symlink_to("one/vm.toml")
    for number in range(2, 42):
        (tree / f"link{number}").symlink_to(f"link{number - 1}")
    os.close(trust.open_file(str(tree / "link40")))
    with pytest.raises(OSError, match="symbolic links") as caught:
        trust.open_file(str(tree / "link41"))
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(tree / "link41"))


def test_without_root_any_file_is_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user can lose nothing to itself: nothing is judged."""
    os.chown(tree / "one", NOBODY, NOBODY)
    monkeypatch.setattr("credferry.launcher.trust.os.geteuid", lambda: NOBODY)
    with os.fdopen(trust.open_file(str(tree / "current/vm.toml"))) as file:
        assert file.read() == "spec"
    trust.check_directory(str(tree / "current"))
