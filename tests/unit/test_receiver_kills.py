# SPDX-License-Identifier: MIT
"""The receiver is killed at every step, and pushes are broken off: the next push finishes what is left.

`tests.support.receiver` says what is real here. A kill takes all processes of the receiver, as systemd's do.
If CREDFERRY_RECEIVER_PUSHES is set, the random test makes that many pushes with each shell, and no step is
left out.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.nightly import variants
from tests.support.receiver import RECEIPT, SHELLS, Block, Guest, plain_push

if TYPE_CHECKING:
    from pathlib import Path

_PUSHES: Final = int(os.environ.get("CREDFERRY_RECEIVER_PUSHES", "6"))
_STRIDE: Final = 1 if "CREDFERRY_RECEIVER_PUSHES" in os.environ else 3
_SEED: Final = int(os.environ.get("CREDFERRY_RECEIVER_SEED", "1"))
_LOADS: Final = 'cat "$SYSTEM/{name}" >>"$FAKE/{name}-loads"; echo >>"$FAKE/{name}-loads"\n'
_DONE: Final = f"done {RECEIPT}"
_UNITS: Final = {"app": "K", "both": "L", "other": "M"}


def _guest(directory: Path, shell: str = SHELLS[0]) -> Guest:
    """A guest with generation 5, and units that note each value that they load at a restart."""
    made = Guest(directory, shell)
    made.boot(5, dict.fromkeys(_UNITS.values(), b"old"))
    for unit, name in _UNITS.items():
        made.unit(f"{unit}.service", f"[Service]\nLoadCredential={name}\n", restart=_LOADS.format(name=name))
    return made


def _loads(guest: Guest, name: str) -> list[str]:
    """The values of a credential that its unit has loaded, one for each restart."""
    log = guest.fake / f"{name}-loads"
    return log.read_text().split() if log.exists() else []


def _push(generation: int, **values: bytes) -> bytes:
    return plain_push(generation, {name: Block.plain(value) for name, value in values.items()})


def test_each_step_of_a_push_may_be_the_last(tmp_path: Path) -> None:
    """The next push of the same generation brings all values, and restarts each unit once for its value."""
    sent = _push(6, K=b"new", L=b"new", M=b"old")
    for step in range(1, 1000, _STRIDE):
        guest = _guest(tmp_path / str(step))
        guest.kill_at(step)
        first = guest.receive(sent)
        guest.clean_up()
        guest.kill_at(0)
        assert guest.receive(sent)[-1] == _DONE, step
        assert guest.values() == {"K": b"new", "L": b"new", "M": b"old"}, step
        assert [_loads(guest, name) for name in "KLM"] == [["new"], ["new"], []], step
        assert guest.left() == [], step
        if first and first[-1] == _DONE:
            break
    assert step > 15


def test_a_push_that_the_host_breaks_off_is_finished(tmp_path: Path) -> None:
    """The push unit is killed once all is sent: the receiver finishes, and the next push changes nothing."""
    guest, sent = _guest(tmp_path), _push(6, K=b"new", L=b"old", M=b"old")
    guest.break_off(sent)
    assert _loads(guest, "K") == ["new"]
    assert guest.receive(sent) == [_DONE]
    assert (_loads(guest, "K"), guest.values()["K"], guest.left()) == (["new"], b"new", [])


def test_a_unit_that_is_starting_is_not_restarted(tmp_path: Path) -> None:
    """The receiver is killed while a unit restarts: systemd goes on, and the next push waits for that."""
    guest, sent = _guest(tmp_path), _push(6, K=b"new", L=b"old", M=b"old")
    unit = guest.fake / "units/app.service"
    unit.joinpath("restart").write_text(
        f"{unit.joinpath('restart').read_text()}echo activating >state\nkill -9 $(cat $FAKE/pid)\n"
    )
    unit.joinpath("start").write_text("echo active >state\n")
    process, connection = guest.start()
    (guest.fake / "pid").write_text(f"{process.pid}\n")
    with connection:
        connection.sendall(sent)
        process.wait(60)
    assert guest.receive(sent) == ["unit app.service restarted", _DONE]
    assert (_loads(guest, "K"), guest.told("start")) == (["new"], ["app.service"])


def test_a_newer_push_after_a_kill_restarts_only_for_what_is_new(tmp_path: Path) -> None:
    """A unit that has its value from the killed push stays up when the next push changes another value."""
    guest = _guest(tmp_path)
    place = guest.fake / "units/both.service/restart"
    place.write_text(f"{place.read_text()}kill -9 $(cat $FAKE/pid)\n")
    process, connection = guest.start()
    (guest.fake / "pid").write_text(f"{process.pid}\n")
    with connection:
        connection.sendall(_push(6, K=b"new", L=b"new", M=b"old"))
        process.wait(60)
    place.write_text(place.read_text().replace("kill", ": kill"))
    assert guest.receive(_push(7, K=b"new", L=b"new", M=b"newer"))[-1] == _DONE
    assert [_loads(guest, name) for name in "KLM"] == [["new"], ["new"], ["newer"]]


@pytest.mark.parametrize(
    "shell", variants(*SHELLS), ids=lambda shell: shell.rpartition("/")[2].rpartition(" ")[2]
)
def test_pushes_with_random_kills_lose_and_double_nothing(tmp_path: Path, shell: str) -> None:
    """Each push is killed at a random step, broken off, or left alone, and repeated until it is done.

    Sometimes a newer generation comes before that. Each unit loads each value once at most, and the last one
    for certain.
    """
    chance = random.Random(_SEED)  # noqa: S311 (nothing secret)
    guest = _guest(tmp_path, shell)
    values = dict.fromkeys(_UNITS.values(), b"old")
    for generation in range(6, 6 + _PUSHES):
        for name in chance.sample("KLM", chance.randint(0, 2)):
            values[name] = b"%s-%d" % (name.encode(), generation)
        sent = _push(generation, **values)
        while True:
            guest.kill_at(chance.choice((0, chance.randint(1, 30))))
            told = guest.receive(sent) if chance.random() < 0.8 else []
            if not told:
                guest.break_off(sent[: chance.randrange(len(sent))])
            guest.clean_up()
            if (told and told[-1] == _DONE) or chance.random() < 0.2:
                break
    guest.kill_at(0)
    assert guest.receive(sent)[-1] == _DONE
    assert guest.values() == values
    for name, value in values.items():
        loads = _loads(guest, name)
        assert len(loads) == len(set(loads)), f"seed {_SEED}: {name} was loaded twice"
        expected = [] if value == b"old" else [value.decode()]
        assert loads[-1:] == expected, f"seed {_SEED}: {name} is lost"
    assert guest.left() == []
