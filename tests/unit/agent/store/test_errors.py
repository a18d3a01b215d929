# SPDX-License-Identifier: MIT
"""Errors of the store: each names the file, the cause and the remedy, and what is in place stays so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from credferry.agent.errors import StoreError, UnsyncedStoreError
from credferry.agent.store.records import Assumed, Attempt, Claim, LastTurn, Outcome
from tests.support.generations import failing_sync, manifest, unbound

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.store.generations import Store


def test_small_records_are_in_place_where_their_last_sync_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold, a noted restart and a way back hold though the last sync fails, and the error says so."""
    store.write(manifest(1), {})
    store.write(manifest(2), {})
    failing_sync(monkeypatch, store.vm_directory("web"))
    attempt = Attempt("0" * 64, Outcome.FAILED)
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.hold("web", held=True)
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.record_attempt("web", attempt)
    with pytest.raises(UnsyncedStoreError, match="power failure"):
        store.revert("web", 1)
    assert store.is_held("web")
    assert store.attempt("web") == attempt
    assert unbound(store.current("web")) == manifest(1)


ACTS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "write": ("generations/2", lambda store: store.write(manifest(2), {})),
    "revert": ("current", lambda store: store.revert("web", 1)),
    "hold": ("held", lambda store: store.hold("web", held=True)),
    "release": ("held", lambda store: store.hold("web", held=False)),
    "assume": ("assumed.json", lambda store: store.assume("web", Assumed("a" * 32, "0" * 64))),
    "attempt": ("rollout.json", lambda store: store.record_attempt("web", Attempt("0", Outcome.FAILED))),
    "forget": ("rollout.json", lambda store: store.record_attempt("web", None)),
    "slot": ("slot.json", lambda store: store.record_claim("web", Claim("web", "h1"))),
    "last": ("last.json", lambda store: store.record_last_turn("web", LastTurn(1.0, 2.0))),
    "restarts": ("restarts.json", lambda store: store.record_restarts("web", [1.0])),
}
"""What is written, and where, below a VM's directory."""


@pytest.mark.parametrize("act", ACTS)
def test_an_error_names_the_file_the_cause_and_the_remedy(store: Store, act: str) -> None:
    """Where something is in the way, the error says of which file, and nothing that was there is lost."""
    name, do = ACTS[act]
    store.write(manifest(1), {})
    path = store.vm_directory("web") / name
    # A directory with something in it is neither replaced nor removed by anything that writes files.
    path.unlink(missing_ok=True)
    (path / "in the way").mkdir(parents=True)
    if act == "revert":
        assert store.generation("web", 1) is not None
    with pytest.raises(
        StoreError, match=rf"^{re.escape(str(path))}: (Is a directory|File exists)"
    ) as caught:
        do(store)
    assert "writable file system" in (caught.value.hint or "")
    assert (path / "in the way").is_dir()


@pytest.mark.parametrize("act", ["write", "hold", "assume", "attempt", "restarts"])
def test_an_error_of_the_last_sync_names_the_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """It is in place, and the error says of which file it may be undone."""
    name, do = ACTS[act]
    store.write(manifest(1), {})
    failing_sync(monkeypatch, store.vm_directory("web"))
    expected = rf"^{re.escape(str(store.vm_directory('web') / name))}: written, but .*No space left"
    with pytest.raises(UnsyncedStoreError, match=expected):
        do(store)
