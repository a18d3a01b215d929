# SPDX-License-Identifier: MIT
"""Converts a store of form 1, once, at the agent's first start with that store.

Each generation gets a manifest of the present version, bound to its values. Numbers, digests and values
stay. A VM that runs under a drop-in of form 1 has no evidence of its start. The agent takes what the VM runs
from its launcher's report, and records this for that invocation. Another process could have forged the
report. So the report counts only if the store holds the named generation with the same digest, and the
agent does not read it again.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from credferry.agent.errors import SealError, StoreError
from credferry.agent.sealing.credential import seal, unseal
from credferry.agent.store import form
from credferry.agent.store.files import replace_durably, sync_directory
from credferry.agent.store.records import Assumed
from credferry.agent.untrusted import read_untrusted
from credferry.launcher.handoff import (
    MANIFEST_FILE,
    HandoffError,
    Manifest,
    Secret,
    unit_credential,
    value_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observer import Observer
    from credferry.agent.store.generations import Store
    from credferry.agent.systemd.units import SystemManager, UnitState

_BLOB_MAX: Final = 4 << 20
_VERSION: Final = 1
_UNBOUND: Final = "0" * 64


def take_over(
    vms: Iterable[VmConfig], store: Store, observer: Observer, manager: SystemManager | None
) -> bool:
    """Convert a store to the present form; whether it now has that form.

    False while there are generations and systemd cannot be asked. Raises `StoreError`, `BusError`.
    """
    if form.read(store.state) >= form.FORM and form.is_barred(store.state):
        return True
    with store.lock():
        try:
            if form.read(store.state) >= form.FORM:
                form.write(store.state)
                return True
            is_empty = not _renew_all(store)
            if manager is None and not is_empty:
                return False
            if manager is not None:
                _assume_all(vms, store, observer, manager)
            form.write(store.state)
        except OSError as error:
            raise StoreError(
                f"{store.state}: cannot convert the store to form {form.FORM}: {error.strerror}",
                hint="the store must be on a writable file system with room; the agent retries",
            ) from None
    return True


def _renew_all(store: Store) -> bool:
    """Renew each generation's manifest; whether there is a generation. Raises OSError."""
    generations = sorted((store.state / "vms").glob("*/generations/*"))
    for generation in generations:
        _renew(store, generation)
    return bool(generations)


def _renew(store: Store, generation: Path) -> None:
    """Replace a manifest of form 1 with a bound one. A generation that cannot be opened stays as it is."""
    try:
        manifest = _unbound(_open(store, generation, MANIFEST_FILE))
        if manifest is None:
            return
        values = {
            entry.name: _open(store, generation, value_file(entry.name)) for entry in manifest.credentials
        }
    except (SealError, HandoffError, FileNotFoundError, NotADirectoryError):
        return
    content = manifest.bound(values, os.urandom(32).hex()).to_bytes()
    # Make the file outside the generation: PID 1 opens all files in it, and may do so now.
    made = generation.parent.parent / "manifest.renewed"
    replace_durably(made, seal(content, name=unit_credential(MANIFEST_FILE), key=store.key))
    made.rename(generation / MANIFEST_FILE)
    sync_directory(generation)


def _open(store: Store, generation: Path, file: str) -> Secret:
    blob = read_untrusted(generation / file, limit=_BLOB_MAX, below=store.state)
    return Secret(unseal(blob, name=unit_credential(file), key=store.key))


def _unbound(content: Secret) -> Manifest | None:
    """A manifest of version 1, converted but not bound to values yet; None for another version."""
    try:
        fields = json.loads(content.reveal())
        if fields.pop("version") != _VERSION:
            return None
        for entry in fields["credentials"]:
            entry["digest"] = _UNBOUND
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return Manifest.from_bytes(json.dumps({**fields, "version": 2, "key": _UNBOUND}).encode())


def _assume_all(vms: Iterable[VmConfig], store: Store, observer: Observer, manager: SystemManager) -> None:
    """Record what each running VM without evidence runs. Raises `StoreError`, `BusError`."""
    vms = list(vms)
    units = manager.units({vm.unit: "" for vm in vms})
    for vm in vms:
        unit = units[vm.unit]
        known = store.assumed(vm.name)
        if (
            not unit.is_active
            or observer.starts.evidence(vm, unit) is not None
            or (known is not None and known.invocation_id == unit.invocation_id)
        ):
            continue
        manifest = _reported(vm, unit, store, observer) or store.current(vm.name)
        if manifest is not None:
            store.assume(vm.name, Assumed(unit.invocation_id, manifest.digest, manifest.generation))


def _reported(vm: VmConfig, unit: UnitState, store: Store, observer: Observer) -> Manifest | None:
    """The generation that the launcher reported; None unless the store holds it with that digest."""
    hint = observer.starts.hint(vm, unit)
    manifest = store.generation(vm.name, hint.generation) if hint is not None else None
    return manifest if manifest is not None and hint is not None and manifest.digest == hint.digest else None
