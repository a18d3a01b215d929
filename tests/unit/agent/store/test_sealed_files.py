# SPDX-License-Identifier: MIT
"""The sealed files of a generation: nothing of another place, another key or another name is taken."""

from __future__ import annotations

import re
import shutil

import pytest

from credferry.agent.errors import SealError, StoreError
from credferry.agent.sealing.credential import seal
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store.generations import Store
from credferry.launcher.handoff import Secret, unit_credential
from tests.support.generations import CANARY, KEY, manifest


@pytest.mark.parametrize(
    "spoil",
    [
        lambda current: (current / "manifest").unlink(),
        lambda current: (current / "value.A").unlink(),
        lambda current: (current / "value.B").write_bytes(b""),
        lambda current: (current / "manifest").write_bytes(b"rubbish"),
        lambda current: current.unlink(),
    ],
    ids=["no manifest", "a value is missing", "a value too many", "rubbish", "no link"],
)
def test_a_spoiled_generation_counts_as_none(store: Store, spoil) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 (a table of lambdas)
    """What a start could not use is not taken for sealed: it will be sealed again."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    spoil(store.vm_directory("web") / "current")
    assert store.current("web") is None
    store.write(manifest(store.next_number("web"), "A"), {"A": Secret(b"1")})
    assert store.current("web") is not None


def test_another_keys_generation_counts_as_none(store: Store) -> None:
    """After a host key is replaced, everything is sealed again."""
    store.write(manifest(1), {})
    assert Store(store.state, CredentialKey(b"other")).current("web") is None


def test_another_vms_generation_counts_as_none(store: Store) -> None:
    """A generation copied from one VM to another is not that VM's."""
    store.write(manifest(1, vm="db"), {})
    store.vm_directory("db").rename(store.vm_directory("web"))
    assert store.current("web") is None


def swapped(store: Store, source: str, target: str) -> StoreError:
    """What is said once one file has been copied over another."""
    vms = store.state / "vms"
    (vms / target).write_bytes((vms / source).read_bytes())
    with pytest.raises(StoreError) as caught:
        store.values("web")
    assert CANARY.decode() not in f"{caught.value}{caught.value.hint}"
    return caught.value


@pytest.fixture
def bound(store: Store) -> Store:
    """Two generations of one VM, and one of another; the values of A are all different."""
    store.write(manifest(1, "A", "B"), {"A": Secret(b"old"), "B": Secret(b"b")})
    store.write(manifest(2, "A", "B"), {"A": Secret(CANARY), "B": Secret(b"b")})
    store.write(manifest(2, "A", "B", vm="db"), {"A": Secret(b"of db"), "B": Secret(b"b")})
    return store


@pytest.mark.parametrize(
    "source",
    ["db/generations/2/value.A", "web/generations/1/value.A"],
    ids=["of another VM", "of an older generation"],
)
def test_a_single_file_of_somewhere_else_is_refused(bound: Store, source: str) -> None:
    """Sealed with the same key and under the same name, it opens; it is not the manifest's."""
    assert "value.A: this is not the value" in str(swapped(bound, source, "web/generations/2/value.A"))


def test_the_same_value_of_somewhere_else_is_no_harm(bound: Store) -> None:
    """Then nothing is passed off as something else, and the VM gets what it should get."""
    vms = bound.state / "vms"
    (vms / "web/current/value.B").write_bytes((vms / "db/current/value.B").read_bytes())
    assert bound.values("web")["B"] == Secret(b"b")


@pytest.mark.parametrize("source", ["db/generations/2", "web/generations/1"])
def test_a_manifest_of_somewhere_else_is_refused(bound: Store, source: str) -> None:
    """It is another VM's or another generation's, or the values are not its own."""
    swapped(bound, f"{source}/manifest", "web/generations/2/manifest")
    assert bound.current("web") is None


def test_two_generations_of_one_value_tell_nothing_by_their_digests(bound: Store) -> None:
    """Each generation has a key of its own, which nothing shows."""
    first, second = bound.current("web"), bound.current("db")
    assert first is not None
    assert second is not None
    assert first.key != second.key
    assert first.credentials[1].digest != second.credentials[1].digest
    assert first.key not in repr(first)
    assert first.credentials[0].digest not in repr(first)


def test_a_value_that_cannot_be_read_is_named_by_its_generation(store: Store) -> None:
    """The error says which directory and why, and does not say what the value is."""
    store.write(manifest(1, "A"), {"A": Secret(CANARY)})
    directory = (store.vm_directory("web") / "current").resolve()
    (directory / "value.A").unlink()
    (directory / "value.A").mkdir()
    with pytest.raises(StoreError, match=rf"^{re.escape(str(directory))}: it is not a regular file"):
        store.values("web")


@pytest.mark.parametrize("file", ["manifest", "value.A"])
def test_a_file_that_was_sealed_under_another_name_is_refused(store: Store, file: str) -> None:
    """The name is sealed with the content: systemd would not open such a file either."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    path = store.vm_directory("web") / "current" / file
    bound = store.current("web")
    assert bound is not None
    content = bound.to_bytes() if file == "manifest" else b"1"
    path.write_bytes(seal(content, name=unit_credential(file), key=KEY))
    assert store.values("web") == {"A": Secret(b"1")}
    path.write_bytes(seal(content, name=unit_credential("value.B"), key=KEY))
    with pytest.raises((StoreError, SealError)):
        store.values("web")


@pytest.mark.parametrize(
    "target",
    ["/etc", "..", "generations", "generations/1/..", "../db/generations/1", "x/1", "x/../generations/1"],
)
def test_current_leads_to_a_generation_of_the_vm_or_nowhere(store: Store, target: str) -> None:
    """A link that leads anywhere else counts as none, even to a whole copy of the VM's generation."""
    store.write(manifest(1, "A"), {"A": Secret(b"1")})
    current = store.vm_directory("web") / "current"
    for copy in ("x/1", "../db/generations/1"):
        shutil.copytree(current.resolve(), current.parent / copy)
    current.unlink()
    current.symlink_to(target)
    assert store.current("web") is None
