# SPDX-License-Identifier: MIT
"""What only the running agent knows: that a VM, which looks due, waits for a slot of its fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from credferry.agent.cli.common import running_agent
from credferry.agent.errors import CredferryError
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from credferry.agent.cli.documents import StatusRow
    from credferry.agent.config.model import Config

_DUE = frozenset({State.RESTART_DUE, State.PUSH_DUE})


def with_waits(config: Config, rows: Sequence[StatusRow]) -> list[StatusRow]:
    """The same rows, in which a VM waits if it is due and the agent says that it waits with what is sealed.

    Without a fleet, or without an agent that answers, the rows stay as they are.
    """
    if config.fleet is None or not any(row.state in _DUE for row in rows):
        return list(rows)
    agent = running_agent(config)
    if agent is None:
        return list(rows)
    try:
        with agent:
            said = {each["Name"]: each for each in agent.vms()}
    except CredferryError:
        return list(rows)
    return [_with_wait(row, said.get(row.vm, {})) for row in rows]


def _with_wait(row: StatusRow, said: dict[str, object]) -> StatusRow:
    sealed = row.sealed.generation if row.sealed is not None else 0
    is_waiting = said.get("State") == State.WAITING.value and said.get("Sealed") == sealed
    if row.state not in _DUE or not is_waiting:
        return row
    reasons = said.get("Reasons")
    return msgspec.structs.replace(
        row, state=State.WAITING, reasons=list(reasons) if isinstance(reasons, list) else row.reasons
    )
