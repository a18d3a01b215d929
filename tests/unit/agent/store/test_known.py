# SPDX-License-Identifier: MIT
"""What a process knows of generations holds for the files as they were, and for no others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from credferry.agent.store.known import KnownGenerations, files_of
from credferry.launcher.handoff import MANIFEST_FILE
from tests.support.generations import manifest

if TYPE_CHECKING:
    from pathlib import Path

    from credferry.launcher.handoff import Manifest


class Disk:
    """Generations of some VMs as bare files, and how often one of them was opened."""

    def __init__(self, state: Path) -> None:
        self.known = KnownGenerations(state)
        self.opened: list[tuple[str, int]] = []
        self._state = state

    def put(self, vm: str, number: int, *, is_current: bool = True) -> Manifest:
        """Write a generation, and have ``current`` lead to it."""
        directory = self._state / "vms" / vm / "generations" / str(number)
        directory.mkdir(parents=True)
        (directory / MANIFEST_FILE).write_bytes(b"sealed")
        (directory / "value.A").write_bytes(b"sealed")
        if is_current:
            self.point(vm, number)
        return manifest(number, vm=vm)

    def point(self, vm: str, number: int) -> None:
        """Have ``current`` lead to a generation."""
        current = self._state / "vms" / vm / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(f"generations/{number}")

    def file(self, vm: str, number: int, name: str = "value.A") -> Path:
        """A file of a generation."""
        return self._state / "vms" / vm / "generations" / str(number) / name

    def touch(self, vm: str, number: int, name: str = MANIFEST_FILE) -> None:
        """Have a file be another one of the same content."""
        file = self.file(vm, number, name)
        made = file.with_suffix(".new")
        made.write_bytes(b"sealed")
        made.rename(file)

    def current(self, vm: str, found: Manifest | None) -> Manifest | None:
        """What is known of the current generation. It is ``found`` if it is opened."""

        def open_it() -> Manifest | None:
            self.opened.append((vm, found.generation if found is not None else 0))
            return found

        return self.known.current(vm, open_it)

    def digest(self, vm: str, number: int, found: Manifest | None = None) -> str:
        """The known digest of a generation. That of ``found`` if it is opened."""

        def open_it() -> Manifest | None:
            self.opened.append((vm, number))
            return found

        return self.known.digest(vm, number, open_it)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Two VMs with one generation each, of which nothing is known."""
    made = Disk(tmp_path)
    for vm in ("web", "db"):
        made.put(vm, 1)
    return made


def test_a_digest_is_of_its_vm_and_number(disk: Disk) -> None:
    """It is read once, and another VM's generation of the same number has its own."""
    found = {(vm, 1): manifest(1, vm=vm).but(digest=vm) for vm in ("web", "db")}
    for _ in range(2):
        for (vm, number), each in found.items():
            assert disk.digest(vm, number, each) == vm
    assert disk.opened == [("web", 1), ("db", 1)]


def test_a_digest_is_read_again_once_its_manifest_is_another_file(disk: Disk) -> None:
    """What cannot be opened has none, is tried again, and nothing is opened where there is nothing."""
    assert disk.digest("web", 1, manifest(1).but(digest="one")) == "one"
    disk.touch("web", 1)
    assert disk.digest("web", 1, None) == ""
    assert disk.digest("web", 1, manifest(1).but(digest="two")) == "two"
    assert disk.digest("web", 2, manifest(2)) == ""
    assert disk.opened == [("web", 1)] * 3


def test_what_is_gone_is_forgotten(disk: Disk) -> None:
    """Of the VM whose generations were removed, only what stays is known; of another VM, all."""
    disk.put("web", 2)
    for vm, number in (("web", 1), ("web", 2), ("db", 1)):
        disk.digest(vm, number, manifest(number, vm=vm))
    disk.known.keep("web", [2])
    disk.known.keep("nobody", [2])
    disk.opened.clear()
    for vm, number in (("web", 1), ("web", 2), ("db", 1)):
        disk.digest(vm, number, manifest(number, vm=vm))
    assert disk.opened == [("web", 1)]


def test_what_this_process_wrote_is_not_opened(disk: Disk) -> None:
    """It is known as long as ``current`` leads to just these files."""
    written = disk.put("web", 2)
    disk.known.note_written(written)
    assert disk.current("web", None) == written
    assert disk.opened == []
    disk.touch("web", 2)
    assert disk.current("web", None) is None
    assert disk.opened == [("web", 0)]


def test_what_is_not_current_any_more_is_not_known_as_current(disk: Disk) -> None:
    """A rollback made another generation current, right after this process had written one."""
    written = disk.put("web", 2)
    disk.point("web", 1)
    disk.known.note_written(written)
    assert disk.current("web", manifest(1)) == manifest(1)
    assert disk.opened == [("web", 1)]


def test_a_generation_that_is_given_up_is_none_until_another_is_current(disk: Disk) -> None:
    """It is not opened, though it could be."""
    disk.known.give_up("web", 1)
    assert disk.current("web", manifest(1)) is None
    assert disk.opened == []
    disk.put("web", 2)
    assert disk.current("web", manifest(2)) == manifest(2)


def test_without_a_current_one_each_call_looks(disk: Disk, tmp_path: Path) -> None:
    """Nothing is known of a link that leads nowhere, or that is gone."""
    disk.point("web", 7)
    for _ in range(2):
        assert disk.current("web", None) is None
    (tmp_path / "vms/web/current").unlink()
    assert disk.current("web", None) is None
    assert disk.opened == [("web", 0)] * 3


@pytest.mark.parametrize("name", [MANIFEST_FILE, "value.A"])
def test_the_files_of_the_last_generation_are_known(disk: Disk, name: str) -> None:
    """They are as written until one of them is another file, or it is another VM's or generation."""
    disk.known.note_written(disk.put("web", 2))
    assert disk.known.is_as_written("web", 2)
    assert not disk.known.is_as_written("web", 1)
    assert not disk.known.is_as_written("db", 1)
    disk.touch("web", 2, name)
    assert not disk.known.is_as_written("web", 2)
    disk.known.note_files("web", 2)
    assert disk.known.is_as_written("web", 2)


def test_a_generation_that_is_gone_is_not_as_written(disk: Disk) -> None:
    """Also where nothing was there when it was noted."""
    disk.known.note_files("web", 9)
    assert not disk.known.is_as_written("web", 9)


def test_a_link_among_the_files_counts_as_itself(disk: Disk, tmp_path: Path) -> None:
    """What it leads to may change and be the same again; a link is no sealed file."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"one")
    link = disk.file("web", 1, "value.L")
    link.symlink_to(outside)
    before = files_of(str(link.parent))
    os.utime(outside, ns=(1, 1))
    assert files_of(str(link.parent)) == before
    assert [each[0] for each in before] == [MANIFEST_FILE, "value.A", "value.L"]
