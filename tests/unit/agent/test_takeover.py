# SPDX-License-Identifier: MIT
"""A store of the first form, taken over: what it holds, and what runs, stays; other releases are barred."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest

from credferry.agent.config.loading import parse
from credferry.agent.errors import ExitStatus, StoreError, StoreFormError
from credferry.agent.reconcile.observer import Observer
from credferry.agent.reconcile.takeover import take_over
from credferry.agent.sealing.credential import seal, unseal
from credferry.agent.sealing.keys import CredentialKey
from credferry.agent.store import form
from credferry.agent.store.generations import Store
from credferry.agent.store.opening import open_store, open_store_untouched
from credferry.agent.store.records import Assumed
from credferry.agent.systemd.units import SystemManager, UnitState
from credferry.launcher.handoff import (
    MANIFEST_FILE,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
    stamp_path,
    unit_credential,
    write_stamp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from credferry.agent.config.model import Config

KEY = CredentialKey(b"k" * 4096)
INVOCATION = "a" * 32
RUN = "0" * 32
CONFIG = b"""
[vms.web.credentials]
K = { secret = "k" }
[vms.db.credentials]
K = { secret = "k" }
"""


@dataclass
class Units:
    """systemd, as far as it is asked here: both units are up."""

    active: str = "active"
    asked: list[str] = field(default_factory=list)

    def units(self, invocations: Mapping[str, str]) -> dict[str, UnitState]:
        """See `SystemManager`."""
        self.asked += invocations
        return {name: UnitState(name, "loaded", self.active, "", INVOCATION) for name in invocations}


@dataclass
class Site:
    """A host whose agent was of the first form."""

    config: Config
    runtime: Path
    store: Store
    units: Units = field(default_factory=Units)

    def take_over(self, *, with_bus: bool = True) -> bool:
        """The new agent's start."""
        observer = Observer(self.config, self.store)
        manager: SystemManager | None = self.units if with_bus else None  # type: ignore[assignment]  # a part
        return take_over(self.config.vms.values(), self.store, observer, manager)

    def report(self, vm: str, generation: int, digest: str) -> None:
        """What a launcher, or a neighbour, has left."""
        directory = stamp_path(vm, self.runtime).parent
        directory.mkdir(parents=True, exist_ok=True)
        write_stamp(directory, Stamp(vm, generation, digest, RUN, INVOCATION, Channel.API, 0))


def digest(number: int) -> str:
    """That of a generation."""
    return f"{number:064x}"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two VMs with two generations each, as a release of the first form has left them."""
    config: Config = parse(CONFIG, tmp_path / "config.toml")
    state, runtime = tmp_path / "state", tmp_path / "run"
    config = msgspec.structs.replace(config, state_directory=str(state), runtime_directory=str(runtime))
    runtime.mkdir()
    store = Store(state, KEY)
    for vm in ("web", "db"):
        for number in (1, 2):
            entries = (ManifestEntry("K", Kind.PLAIN, "0" * 16),)
            manifest = Manifest(vm, number, digest(number), RUN, Delivery(), entries)
            store.write(manifest, {"K": Secret(f"{vm} {number}".encode())})
            _make_old(state / f"vms/{vm}/generations/{number}")
    (state / "seal.lock").rename(state / "lock") if (state / "seal.lock").exists() else (
        state / "lock"
    ).touch()
    return Site(config, runtime, store)


def _make_old(generation: Path) -> None:
    """Put a manifest of version 1 there."""
    path, name = generation / MANIFEST_FILE, unit_credential(MANIFEST_FILE)
    fields = json.loads(unseal(path.read_bytes(), name=name, key=KEY))
    del fields["key"]
    for entry in fields["credentials"]:
        del entry["digest"]
    path.write_bytes(seal(json.dumps(fields | {"version": 1}).encode(), name=name, key=KEY))


def test_generations_stay_and_are_bound(site: Site) -> None:
    """Numbers, digests and values are what they were, of the older generations too; nothing else is left."""
    assert site.store.current("web") is None
    before = sorted(str(path) for path in (site.store.state / "vms").rglob("*"))
    assert site.take_over()
    current, older = site.store.current("web"), site.store.generation("web", 1)
    assert current is not None
    assert older is not None
    assert (current.generation, current.digest, older.digest) == (2, digest(2), digest(1))
    assert site.store.values("web") == {"K": Secret(b"web 2")}
    assert current.key != older.key
    after = {str(path) for path in (site.store.state / "vms").rglob("*")}
    assert {path for path in after if not path.endswith("assumed.json")} == set(before)


def test_what_runs_is_taken_from_a_report_that_the_store_bears_out(site: Site) -> None:
    """So a VM that was behind stays behind. It is written down, and read from no report again."""
    site.report("web", 1, digest(1))
    site.report("db", 2, digest(2))
    assert site.take_over()
    assert site.store.assumed("web") == Assumed(INVOCATION, digest(1), 1)
    assert site.store.assumed("db") == Assumed(INVOCATION, digest(2), 2)
    site.report("web", 2, digest(2))
    assert site.take_over()
    assert site.store.assumed("web") == Assumed(INVOCATION, digest(1), 1)
    assert len(site.units.asked) == 2


@pytest.mark.parametrize(
    ("generation", "named"), [(9, digest(9)), (1, "f" * 64), (2, digest(1)), (0, digest(1))]
)
def test_a_report_that_the_store_does_not_bear_out_is_none(site: Site, generation: int, named: str) -> None:
    """The VM is then taken to run what is current."""
    site.report("web", generation, named)
    assert site.take_over()
    assert site.store.assumed("web") == Assumed(INVOCATION, digest(2), 2)


def test_without_the_bus_it_is_not_over(site: Site) -> None:
    """Generations can be started from by then; what runs is written down once systemd can be asked."""
    site.report("web", 1, digest(1))
    assert not site.take_over(with_bus=False)
    assert site.store.current("web") is not None
    assert site.store.assumed("web") is None
    assert site.take_over()
    assert site.store.assumed("web") == Assumed(INVOCATION, digest(1), 1)


def test_stopped_vms_have_nothing_assumed(site: Site) -> None:
    """Their next start has evidence, or is seen by the agent."""
    site.units.active = "inactive"
    site.report("web", 1, digest(1))
    assert site.take_over()
    assert site.store.assumed("web") is None


def test_it_can_be_interrupted(site: Site) -> None:
    """Where a part was done before a crash, and a generation is spoiled, the rest is done."""
    site.take_over(with_bus=False)
    _make_old(site.store.state / "vms/db/generations/2")
    (site.store.state / "vms/web/generations/1/value.K").write_bytes(b"spoiled")
    _make_old(site.store.state / "vms/web/generations/1")
    shutil.copy(site.store.state / "vms/db/current/manifest", site.store.state / "vms/db/manifest.renewed")
    assert site.take_over()
    assert site.store.values("db") == {"K": Secret(b"db 2")}
    assert site.store.values("web") == {"K": Secret(b"web 2")}
    assert site.store.generation("web", 1) is None


def test_a_new_store_is_of_the_present_form_at_once(tmp_path: Path, site: Site) -> None:
    """With or without the bus."""
    site.store = Store(tmp_path / "new", KEY)
    assert site.take_over(with_bus=False)
    assert form.read(tmp_path / "new") == form.FORM


def test_a_release_of_the_first_form_is_barred(site: Site) -> None:
    """Before each sealing it opens STATE/lock so, and without that it neither seals nor restarts."""
    lock = site.store.state / "lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.close(descriptor)
    assert site.take_over()
    with pytest.raises(IsADirectoryError):
        os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def test_the_bar_is_put_back(site: Site) -> None:
    """Whoever has cleared the store of its locks."""
    assert site.take_over()
    shutil.rmtree(site.store.state / "lock")
    (site.store.state / "lock").touch()
    assert site.take_over(with_bus=False)
    assert (site.store.state / "lock").is_dir()


@pytest.mark.parametrize("opening", [open_store, open_store_untouched])
def test_a_store_of_a_later_form_is_refused(site: Site, opening: object) -> None:
    """With one line, before the host's key is touched, and for good: to start again does not help."""
    site.take_over()
    (site.store.state / "form").write_text("3\n")
    with pytest.raises(
        StoreFormError, match="has form 3, but this release of credferry knows forms up to 2"
    ) as caught:
        opening(site.config)  # type: ignore[operator]  # one of the two
    assert caught.value.status is ExitStatus.CONFIGURATION


def test_a_form_that_is_no_file_is_not_waited_for(site: Site) -> None:
    """Root's verbs read it in a directory of the agent's user."""
    os.mkfifo(site.store.state / "form")
    with pytest.raises(StoreError, match="form: it is not a regular file"):
        open_store_untouched(site.config)
