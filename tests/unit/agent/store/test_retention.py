# SPDX-License-Identifier: MIT
"""Which generations stay when another one is written."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from credferry.agent.errors import StoreError
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import GENERATION_MAX, Secret
from tests.support.generations import KEY, failing_listing, manifest, numbers, unbound


def test_old_generations_are_pruned(store: Store) -> None:
    """The last few are kept, and what a crash left half-written goes."""
    for number in range(1, 8):
        store.write(manifest(number), {})
    (store.vm_directory("web") / "generations" / "99").mkdir()
    store.write(manifest(8), {})
    assert numbers(store) == {6, 7, 8}
    store.write(manifest(9), {}, keep={6})
    store.write(manifest(10), {}, keep={6})
    assert numbers(store) == {6, 8, 9, 10}
    assert store.previous("web") == store.generation("web", 9)


@pytest.mark.parametrize("lacks", ["manifest", "value.A", "the content of value.A"])
def test_what_a_crash_left_half_written_takes_no_place_of_a_whole_generation(
    store: Store, lacks: str
) -> None:
    """As many whole generations are kept as ever, and what is half-written goes."""
    for number in range(1, 4):
        store.write(manifest(number, "A"), {"A": Secret(b"a")})
    left = store.vm_directory("web") / "generations" / "4"
    shutil.copytree(left.with_name("3"), left)
    if lacks in {"manifest", "value.A"}:
        (left / lacks).unlink()
    else:
        (left / "value.A").write_bytes(b"")
    store.write(manifest(5, "A"), {"A": Secret(b"a")})
    assert numbers(store) == {2, 3, 5}


@pytest.mark.parametrize("entry", ["tmp", "\N{SUPERSCRIPT TWO}", str(GENERATION_MAX), "-3", "98"])
def test_what_is_no_generation_is_in_nobody_s_way(store: Store, entry: str) -> None:
    """Entries that the agent did not make are neither counted nor a reason to fail."""
    store.write(manifest(1), {})
    (store.vm_directory("web") / "generations" / entry).write_bytes(b"")
    store.write(manifest(2), {})
    assert store.next_number("web") == (99 if entry == "98" else 3)
    assert unbound(store.previous("web")) == manifest(1)


@pytest.mark.parametrize("key", [KEY, CredentialKey(b"the next")], ids=["the same key", "another key"])
def test_whole_generations_stay_after_the_agent_starts_anew(store: Store, key: CredentialKey) -> None:
    """A new process keeps the whole generations that are there, also those of an earlier key."""
    for number in range(1, 4):
        store.write(manifest(number, "A"), {"A": Secret(b"a")})
    Store(store.state, key).write(manifest(4, "A"), {"A": Secret(b"a")})
    assert numbers(store) == {2, 3, 4}


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sealed files that the store opens from now on."""
    read: list[Path] = []

    def counted(path: Path, *, limit: int, below: Path) -> bytes:
        read.append(path)
        return read_untrusted(path, limit=limit, below=below)

    monkeypatch.setattr("credferry.agent.store.sealed_files.read_untrusted", counted)
    return read


def test_generations_that_are_known_to_be_whole_are_not_opened_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a new process opens the generations that are there, once. Other writes open none, of any VM."""
    read = opened(monkeypatch)
    for number in range(1, 6):
        for vm in ("web", "db"):
            store.write(manifest(number, vm=vm), {})
    assert read == []
    again = Store(store.state, KEY)
    again.write(manifest(6), {})
    generations = store.vm_directory("web") / "generations"
    assert read == [generations / str(number) / "manifest" for number in (5, 4)]
    again.write(manifest(7), {})
    assert len(read) == 2


def test_what_stays_is_not_opened_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a removal, the store still knows each generation that stays, and finds no other."""
    for number in range(1, 9):
        store.write(manifest(number), {}, None)
    store.revert("web", 2)
    assert [store.find("web", f"{number:064x}", 0) for number in range(1, 9)] == [*range(1, 9)]
    store.prune("web", 2, {4})
    read = opened(monkeypatch)
    assert [store.find("web", f"{number:064x}", 0) for number in range(1, 9)] == [1, 2, 0, 4, 0, 6, 7, 8]
    assert read == []


def test_a_generation_that_cannot_be_removed_stops_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are removed, and the next time it goes as well."""
    for number in range(1, 6):
        store.write(manifest(number), {}, None)
    remove = os.rmdir

    def busy(path: str, *arguments: object, **more: int) -> None:
        if Path(path).name == "2":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        remove(path, *arguments, **more)

    monkeypatch.setattr(os, "rmdir", busy)
    store.prune("web", 5, ())
    assert numbers(store) == {2, 3, 4, 5}
    monkeypatch.undo()
    store.prune("web", 5, ())
    assert numbers(store) == {3, 4, 5}


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number is given then, as it might be used already, and nothing is removed or missed."""
    for number in range(1, 6):
        store.write(manifest(number), {}, None)
    store.revert("web", 1)
    failing_listing(monkeypatch, "web")
    for ask in (
        partial(store.next_number, "web"),
        partial(store.find, "web", "no such digest", 0),
        partial(store.previous, "web"),
        partial(store.prune, "web", 1, ()),
    ):
        with pytest.raises(StoreError, match="vms/web/generations: Input/output error"):
            ask()
    monkeypatch.undo()
    assert store.next_number("web") == 6
    assert numbers(store) == {1, 2, 3, 4, 5}
