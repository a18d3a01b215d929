# SPDX-License-Identifier: MIT
"""What was promised, as ratios within one run, and whether it was kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import accepted, growth, idle, launch, live, sealing
from benchmarks.exponents import exponents
from benchmarks.results import CREDFERRY, LIMIT, SHELL
from credferry.launcher.handoff import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.results import Results

_TEN = "10 secrets, 1 VM"
_LARGEST = "10,000 secrets of 1,024 bytes, 1,000 VMs"
_CASE_OF_IDLING = "100 secrets, 10 VMs"
_IDLE_MOST = 10.0
_EXPONENT_MOST = 1.05


@dataclass(frozen=True, slots=True)
class Target:
    """A number, and what it is to be at most (or at least)."""

    what: str
    value: float
    bound: float
    at_least: bool = False
    unit: str = "times"

    @property
    def is_met(self) -> bool:
        """Whether it is; what was not measured is not."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        how = "≥" if self.at_least else "≤"
        return f"{how} {self.bound:,g} {self.unit}"


def targets(results: Results) -> list[Target]:
    """All targets of which something was measured."""
    return [target for target in _all(results) if target.value == target.value]


def _all(results: Results) -> Iterator[Target]:
    def middle(measure: str, case: str, contender: str = CREDFERRY) -> float:
        found = results.find(measure, case, contender)
        return found.middle if found else float("nan")

    one = accepted.ONE
    yield Target(
        "rename → restart, 10 secrets: credferry / the limit",
        middle(one, _TEN) / middle(one, _TEN, LIMIT),
        5,
    )
    ten = results.find(one, _TEN, CREDFERRY)
    slow = ten.seen.p99 if ten and ten.seen else float("nan")
    yield Target("the same: credferry, p99", slow, 10, unit="ms")
    for each in results.of(one):
        if each.contender == SHELL:
            bound = 1 if each.case.startswith("10,000") else 3
            ratio = each.middle / middle(one, each.case)
            yield Target(
                f"rename → restart, {each.case}: shell agent / credferry", ratio, bound, at_least=True
            )
    for measure, what in ((accepted.ALL, "first"), (accepted.IN_TURN, "last")):
        for each in results.of(measure):
            if each.contender == SHELL:
                yield Target(
                    f"all changed, {each.case}, {what} VM: shell agent / credferry",
                    each.middle / middle(measure, each.case),
                    100,
                    at_least=True,
                )
    for size in ("32", "1,024"):
        case = f"10,000 secrets of {size} bytes, 1,000 VMs"
        ratio = middle(growth.TIME, case) / middle(growth.TIME, case, growth.READING)
        yield Target(f"one look, {case}: credferry / reading alone", ratio, 2)
        ratio = middle(growth.MEMORY, case) / middle(growth.MEMORY, case, growth.SECRETS)
        yield Target(f"memory of that look / the secrets, {size} bytes each", ratio, 3)
    yield from _of_growth(results)
    for case in ("32 bytes", "4,096 bytes"):
        ratio = middle(sealing.MEMORY, case, sealing.CREDS) / middle(sealing.MEMORY, case)
        yield Target(f"sealing {case} in memory: systemd-creds / credferry", ratio, 500, at_least=True)
    for case in ("1 credential", "10 credentials", "100 credentials"):
        ratio = middle(sealing.DURABLE, case) / middle(sealing.DURABLE, case, sealing.WRITES)
        yield Target(f"sealing {case} durably: credferry / write, fsync, rename", ratio, 1.5)
    yield from _of_launcher(results)
    yield from _of_guests(results)
    yield Target("idle: wake-ups a minute", middle(idle.WAKE_UPS, _CASE_OF_IDLING), _IDLE_MOST, unit="")
    yield Target("idle: resident memory", middle(idle.MEMORY, _CASE_OF_IDLING), 42, unit="MiB")
    yield Target("agent ready", middle(idle.READY, _CASE_OF_IDLING), 500, unit="ms")


def _of_launcher(results: Results) -> Iterator[Target]:
    for channel in Channel:
        measure = launch.measure_name(channel)
        for case, bound in (("10 credentials", 1.3), ("100 credentials", 1.0)):
            found = {each.contender: each.middle for each in results.of(measure) if each.case == case}
            if not found:
                continue
            label = f"start, {channel.value} channel, {case}"
            yield Target(
                f"{label}: credferry / shell wrapper", found[CREDFERRY] / found[launch.WRAPPER], bound
            )
            if case.startswith("10 "):
                added = found[CREDFERRY] - found[launch.BARE] - found[launch.EMPTY]
                yield Target(f"{label}: added, over an empty python3", added, 15, unit="ms")


def _of_growth(results: Results) -> Iterator[Target]:
    for each in exponents(results):
        what = f"growth with secrets and VMs: {each.measure}"
        yield Target(f"{what}, exponent over {each.cases} cases", each.fit, _EXPONENT_MOST, unit="")
        yield Target(f"{what}, exponent of the last tenfold", each.last, _EXPONENT_MOST, unit="")


def _of_guests(results: Results) -> Iterator[Target]:
    reached = {each.contender: each.middle for each in results.of(live.LIVE)}
    if reached:
        pushed = reached[CREDFERRY]
        what = "publication → the guest's service answers with the value"
        yield Target(f"{what}: credferry / a push by hand", pushed / reached[live.BY_HAND], 1.3)
        yield Target("the same: credferry, in an emulated guest", pushed / 1000, 4, unit="s")
        ratio = reached[live.RESTART] / reached[live.BOOT]
        yield Target(f"{what}, by a restart of the VM: credferry / the restart alone", ratio, 1.02)
