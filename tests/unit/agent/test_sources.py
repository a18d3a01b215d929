# SPDX-License-Identifier: MIT
"""Several sources: each is read, settled and reported by itself, and concerns only the VMs that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from credferry.agent.audit.events import Event
from credferry.agent.config.loading import load
from credferry.agent.daemon.once import seal_once
from credferry.agent.errors import SourceError
from credferry.agent.reconcile.decision import State
from credferry.agent.source.watch import Watch
from credferry.agent.source.watches import Watches
from tests.support.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VMS = """
[sources.acme]
path = "{acme}"
quiet_seconds = 0
[vms.a.credentials]
X = {{ secret = "x" }}
KEY = {{ secret = "key.pem", source = "acme" }}
[vms.b.credentials]
X = {{ secret = "x" }}
[vms.c.credentials]
T = {{ text = "t" }}
"""


def write(loop: Loop, value: str) -> None:
    """Write a key in place, as a client of ACME does."""
    (loop.top / "acme").mkdir(exist_ok=True)
    (loop.top / "acme/key.pem").write_text(value)


def quiet(loop: Loop, seconds: float) -> None:
    """Have the second source settle for so long."""
    text = VMS.format(acme=loop.top / "acme").replace("quiet_seconds = 0", f"quiet_seconds = {seconds}")
    loop.configure(text)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Three VMs that run in step: one of both sources, one of the default one, one of none."""
    made = Loop(tmp_path, VMS.format(acme=tmp_path / "acme"))
    made.publish(x="one")
    write(made, "key one")
    seal_once(load(made.file))
    for vm in "abc":
        made.start_vm(vm)
    with made.running():
        made.turn(lambda: all(made.decision(vm).state is State.IN_STEP for vm in "abc"))
        yield made


def generation(loop: Loop, vm: str) -> int:
    """The number of a VM's current generation."""
    return loop.store.current_number(vm)


def test_each_source_reaches_the_vms_that_use_it(loop: Loop) -> None:
    """A change in the one source restarts only its VM, and a change in the other restarts both."""
    write(loop, "key two")
    loop.turn(lambda: loop.units.restarts)
    loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
    assert loop.units.restarts == ["microvm@a.service"]
    loop.publish(x="two")
    loop.turn(lambda: len(loop.units.restarts) == 3)
    assert sorted(loop.units.restarts[1:]) == ["microvm@a.service", "microvm@b.service"]


def test_a_lost_source_concerns_its_own_vms(loop: Loop) -> None:
    """Its VM keeps what it has, and others are rotated; both ends are recorded once, with its name."""
    (loop.top / "acme").rename(loop.top / "gone")
    loop.publish(x="two")
    loop.turn(lambda: loop.units.restarts)
    loop.turn()
    loop.turn()
    assert loop.units.restarts == ["microvm@b.service"]
    assert loop.decision("a").state is State.REFUSED
    assert "source acme (" in loop.decision("a").reasons[0]
    assert loop.turned.failure is None
    (lost,) = [message for event, message in loop.told() if event is Event.SOURCE_LOST]
    assert "source acme; the VMs that use it (a) keep the previous secrets" in lost
    assert "sources.acme.path" in lost
    assert Event.REFUSED not in loop.events(), "one record is about the source, and none about its VMs"
    (loop.top / "gone").rename(loop.top / "acme")
    loop.turn(lambda: len(loop.units.restarts) == 2)
    (back,) = [message for event, message in loop.told() if event is Event.SOURCE_BACK]
    assert back.startswith("source acme (")


def test_a_lost_default_source_does_not_concern_the_others(loop: Loop) -> None:
    """A VM without secrets of it gets new settings; only if no VM can be served does the look fail."""
    (loop.top / "secrets").unlink()
    loop.turn()
    assert loop.turned.failure is None
    assert [loop.decision(vm).state for vm in "abc"] == [State.REFUSED, State.REFUSED, State.IN_STEP]
    loop.configure('[vms.b.credentials]\nX = { secret = "x" }\n')
    loop.service._reload()
    loop.turn()
    assert isinstance(loop.turned.failure, SourceError)


def test_a_source_that_settles_holds_up_its_own_vms_alone(loop: Loop) -> None:
    """A file that was just written in one source waits; a swap of the other is not held up by it."""
    quiet(loop, 3600)
    loop.service._reload()
    loop.turn()
    write(loop, "half a key")
    loop.publish(x="two")
    loop.turn(lambda: loop.units.restarts)
    loop.turn()
    assert loop.units.restarts == ["microvm@b.service"]
    assert generation(loop, "a") == 1
    assert not loop.turned.is_settled
    assert loop.turned.delay > 0
    quiet(loop, 0)
    loop.service._reload()
    loop.turn(lambda: len(loop.units.restarts) == 2)
    assert generation(loop, "a") == 2, "both changes came by one restart"


def test_others_wait_for_a_canary_whose_source_settles(loop: Loop) -> None:
    """A VM that settles has its turn before those that go after it, as if it were restarted already."""
    quiet(loop, 3600)
    text = loop.file.read_text().replace("[rollout]", '[rollout]\ncanaries = ["a"]')
    loop.file.write_text(text)
    loop.service._reload()
    loop.turn()
    write(loop, "half a key")
    loop.publish(x="two")
    for _ in range(5):
        loop.turn()
    assert loop.units.restarts == []
    loop.file.write_text(text.replace("3600", "0"))
    loop.service._reload()
    loop.turn(lambda: len(loop.units.restarts) == 2)
    assert loop.units.restarts == ["microvm@a.service", "microvm@b.service"]


def test_a_source_that_never_settles_holds_up_no_other_vm(loop: Loop) -> None:
    """Nobody who writes one source without an end can keep VMs of another from their change."""
    quiet(loop, 3600)
    loop.file.write_text(
        loop.file.read_text()
        .replace("[rollout]", '[rollout]\ncanaries = ["c"]')
        .replace("quiet_seconds = 3600", "quiet_seconds = 3600\nquiet_max_seconds = 86400")
    )
    loop.service._reload()
    loop.turn()
    loop.service._cycle._sources._settling._settlers["acme"].is_restless = True
    write(loop, "half a key")
    loop.publish(x="two")
    loop.turn(lambda: loop.units.restarts)
    assert loop.units.restarts == ["microvm@b.service"]
    assert generation(loop, "a") == 1


def test_one_name_in_two_sources_is_two_secrets(tmp_path: Path) -> None:
    """Their fingerprints differ, though the values are the same; VMs of one source have the same one."""
    loop = Loop(
        tmp_path,
        f'[sources.other]\npath = "{tmp_path}/acme"\n[vms.a.credentials]\nX = {{ secret = "key.pem" }}\n'
        'Y = { secret = "key.pem", source = "other" }\n'
        '[vms.b.credentials]\nZ = { secret = "key.pem", source = "other" }\n',
    )
    write(loop, "value")
    loop.publish(**{"key.pem": "value"})
    seal_once(load(loop.file))
    with loop.made() as service:
        manifests = [service._session.store.current(vm) for vm in "ab"]
        found = {each.name: each.fingerprint for made in manifests if made for each in made.credentials}
    assert found["X"] != found["Y"] == found["Z"]


def test_the_first_sealing_serves_what_it_can(tmp_path: Path) -> None:
    """Without one of the sources, VMs of the others are sealed for; without all of them it fails."""
    loop = Loop(tmp_path, VMS.format(acme=tmp_path / "acme"))
    loop.publish(x="one")
    states = {vm.name: state for vm, state, _ in seal_once(load(loop.file))}
    assert states == {"a": State.REFUSED, "b": State.SEAL_DUE, "c": State.SEAL_DUE}
    (tmp_path / "secrets").unlink()
    with pytest.raises(SourceError, match="secrets: No such file"):
        seal_once(load(loop.file))


def test_a_change_of_a_neighbouring_field_restarts_nothing(tmp_path: Path) -> None:
    """Only a change of the field that a VM takes is sealed; a field that is gone refuses the VM, by name."""
    loop = Loop(tmp_path, '[vms.a.credentials]\nX = { secret = "app.yaml", field = "db.password" }\n')
    loop.publish(**{"app.yaml": "db: {password: hunter2, user: one}"})
    seal_once(load(loop.file))
    loop.start_vm("a")
    with loop.running():
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
        loop.publish(**{"app.yaml": "# another order\ndb:\n  user: two\n  password: hunter2\n"})
        loop.turn()
        loop.turn()
        assert generation(loop, "a") == 1
        loop.publish(**{"app.yaml": "db: {password: hunter3}"})
        loop.turn(lambda: loop.units.restarts)
        loop.turn(lambda: loop.decision("a").state is State.IN_STEP)
        assert generation(loop, "a") == 2
        loop.publish(**{"app.yaml": "db: {passwrod: hunter4}"})
        loop.turn()
        reasons = "; ".join(loop.decision("a").reasons)
    assert "field 'db.password' of secret 'app.yaml' does not exist: publish it" in reasons
    assert "hunter" not in reasons + repr(loop.told())
    assert loop.units.restarts == ["microvm@a.service"]


class _Noted(Watch):
    """Notes what it is to watch."""

    seen: ClassVar[list[tuple[str, list[str]]]] = []

    def __init__(self, source: Path, hint: Callable[[str], None]) -> None:
        super().__init__(source, hint)
        self.source = source

    def arm(self, names: object) -> bool:
        """See `Watch`."""
        assert isinstance(names, list)
        self.seen.append((self.source.name, names))
        return self.source.name == "new"


def test_each_source_in_use_is_watched(tmp_path: Path) -> None:
    """A source that no VM uses has no watch; names below directories are watched by themselves."""
    loop = Loop(
        tmp_path,
        '[sources.one]\npath = "/one"\n[sources.two]\npath = "/two"\n'
        '[vms.a.credentials]\nX = { secret = "d/x", source = "one" }\n'
        'Y = { secret = "y", source = "one" }\n',
    )
    _Noted.seen.clear()
    watches = Watches(load(loop.file), _Noted, lambda _hint: None)
    watches.arm()
    assert watches.is_whole
    assert _Noted.seen == [("one", ["d/x"])]
