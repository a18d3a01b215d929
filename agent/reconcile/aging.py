# SPDX-License-Identifier: MIT
"""How old a VM's secrets are, and warnings for the operator. No text holds a value."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from credferry.agent.reconcile.desired import Desired

if TYPE_CHECKING:
    from collections.abc import Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store

DAY: Final = 86_400
SOON_SECONDS: Final = 3 * DAY
"""The agent warns this long before a secret ends."""


def since(observed: Observed, store: Store) -> dict[str, float]:
    """Since when the VM's secrets have had their sealed values, in seconds since 1970, by credential.

    A value is as old as the first generation that had it, as far as that is noted; else as the current one.
    """
    sealed = observed.sealed
    if sealed is None:
        return {}
    noted = store.known_ages(sealed)
    fallback = None if all(entry.name in noted for entry in sealed.credentials) else store.sealed_at(sealed)
    found = {entry.name: noted.get(entry.name, fallback) for entry in sealed.credentials}
    secrets = {name for name, each in observed.vm.credentials.items() if each.secret is not None}
    return {name: moment for name, moment in found.items() if moment is not None and name in secrets}


def ends(observed: Observed) -> Mapping[str, float]:
    """When the VM's published secrets end by their own words, in seconds since 1970, by credential."""
    return observed.desired.ends if isinstance(observed.desired, Desired) else {}


def overdue(vm: VmConfig, ages: Mapping[str, float], now: float) -> list[str]:
    """The credentials that are older than their ``max_age_days``."""
    limits = {name: each.max_age_days for name, each in vm.credentials.items()}
    return [
        name
        for name, moment in sorted(ages.items())
        if (days := limits.get(name)) is not None and now - moment > days * DAY
    ]


def warnings(
    vm: VmConfig, ages: Mapping[str, float], ending: Mapping[str, float], now: float
) -> tuple[str, ...]:
    """What has ended or ends soon, and what is overdue, in words that do not change from look to look."""
    told = [
        f"{name} {'has expired' if end <= now else 'expires'} on {_day(end)} (UTC)"
        for name, end in sorted(ending.items())
        if end - now < SOON_SECONDS
    ]
    told += [
        f"{name} is older than its max_age_days, {vm.credentials[name].max_age_days}"
        for name in overdue(vm, ages, now)
    ]
    return tuple(told)


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()
