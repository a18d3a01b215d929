# SPDX-License-Identifier: MIT
"""Records in the audit who gave an order on a VM, which order, and why. Such a record begins a run."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.audit.events import Event, Order
from credferry.agent.errors import OrderError
from credferry.agent.printable import printable
from credferry.agent.reconcile.sealer import new_run

if TYPE_CHECKING:
    from credferry.agent.audit.writer import Audit
    from credferry.agent.config.model import VmConfig
    from credferry.launcher.handoff import Manifest

REASON_MAX = 200


@dataclass(frozen=True, slots=True)
class Operator:
    """Who gives an order, and why. ``uid`` comes from the bus, never from the caller."""

    uid: int
    reason: str = ""

    @classmethod
    def of_user(cls, uid: int, reason: str) -> Operator:
        """A user with a reason. Raises `OrderError` if the reason is too long."""
        if len(reason) > REASON_MAX:
            raise OrderError(
                "Reason", f"the reason is longer than {REASON_MAX} characters", hint="give a shorter one"
            )
        return cls(uid, printable(reason.strip()))

    @property
    def name(self) -> str:
        """The user's name; empty if the host knows no name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return ""

    def said(self, ordered: str) -> str:
        """The message of an order: what was ordered, by whom, and why."""
        name = self.name
        who = f"{name} (user {self.uid})" if name else f"user {self.uid}"
        return f"{ordered} ordered by {who}" + (f": {self.reason}" if self.reason else "")

    def fields(self, order: str) -> dict[str, str]:
        """The journal fields of an order's record that say what was ordered, by whom, and why."""
        return {
            "CREDFERRY_ORDER": order,
            "CREDFERRY_CALLER": self.name,
            "CREDFERRY_CALLER_UID": str(self.uid),
            "CREDFERRY_REASON": self.reason,
        }


def record(
    audit: Audit,
    order: Order,
    vm: VmConfig,
    operator: Operator,
    manifest: Manifest | None = None,
    *,
    with_slot: bool = True,
) -> str:
    """Write an order to the audit, and return the run for all records that follow from it.

    ``manifest`` is the generation that the order is about, if it is about one. ``with_slot`` is False for an
    order that does not ask the fleet. Raises `StoreError`.
    """
    run = new_run()
    about = f" of generation {manifest.generation}, run {manifest.run}," if manifest is not None else ""
    about += "" if with_slot else " without a slot of the fleet"
    fields = operator.fields(order.value)
    if not with_slot:
        fields["CREDFERRY_WITHOUT_SLOT"] = "1"
    audit.record(
        Event.ORDERED,
        operator.said(f"{vm.name}: {order.value}{about}"),
        run=run,
        vm=vm.name,
        unit=vm.unit,
        extra=fields,
    )
    return run
