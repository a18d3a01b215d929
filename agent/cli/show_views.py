# SPDX-License-Identifier: MIT
"""What ``credferry show`` prints about a VM."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from credferry.agent.cli import tables
from credferry.agent.cli.status_views import shown_state
from credferry.agent.cli.times import moment
from credferry.agent.config.model import VmConfig
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

    from credferry.agent.cli.documents import RotationRow, SecretRow, ShowRow, WiringRow

_SHORT: Final = 12
_DEFAULTS: Final = msgspec.to_builtins(VmConfig())
_ALWAYS: Final = ("policy", "channel")
_UNTIL: Final = {
    State.FAILED: "nothing until a secret changes, or an operator orders: credferry retry {vm}",
    State.HALTED: "nothing until the VM that failed recovers, or an operator orders: credferry retry {vm}",
    State.HELD: "nothing until an operator acts; if one holds it: credferry release {vm}",
    State.APPROVAL: "nothing until an operator orders what is said above",
    State.ROLLED_BACK: "nothing until a secret changes, or an operator orders: credferry retry {vm}",
    State.REFUSED: "nothing until the reason above is corrected",
    State.WAITING: "a restart, once the reason above is over",
    State.CHANGING: "the agent looks again when the VM has started or stopped",
    State.STOPPED: "its next start gets what is sealed",
    State.NO_UNIT: "nothing until systemd has its unit",
}
"""What the state of a VM for which nothing is to be done now means for it."""
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def vm_lines(
    row: ShowRow, columns: int | None, where: tzinfo | None, now: datetime | None = None
) -> Iterator[tuple[str, str]]:
    """The lines about a VM, each with its style."""
    now = now or datetime.now(UTC)
    status = row.status
    since = f", since {moment(status.since, where)}" if status.since else ""
    yield f"{status.vm}: {shown_state(status)}{since}", "bold"
    for reason in status.reasons:
        yield from _folded("", reason, columns)
    yield from _folded("Unit", f"{status.unit}, {status.unit_state}", columns)
    yield from _folded("Wiring", _wiring(row.wiring), columns)
    sealed = str(status.sealed.generation) if status.sealed else "none"
    running = str(status.running.generation) if status.running else "none"
    by = f" (by a {status.arrived.value})" if status.arrived is not None else ""
    yield from _folded("Generation", f"runs {running}{by}, sealed {sealed}", columns)
    yield from _folded("Settings", _settings(row.settings), columns)
    if status.last_result and status.last_result not in status.reasons:
        yield from _folded("Last result", status.last_result, columns)
    yield from _folded("Next", _next(row), columns)
    if status.next is not None:
        why = f", because {status.next_reason}" if status.next_reason else ""
        yield from _folded("A change", f"reaches it by a {status.next.value}{why}", columns)
    yield "", ""
    yield from _secrets(row.credentials, columns, where, now)
    if row.rotations:
        yield "", ""
        yield from _rotations(row.rotations, columns, where)


def age(since: datetime, now: datetime) -> str:
    """How long ago something was, in its largest unit, such as ``3 d``; for what is to come, ``in 3 d``."""
    seconds = (now - since).total_seconds()
    size, unit = next((each for each in _UNITS if abs(seconds) >= each[0]), _UNITS[-1])
    number = int(abs(seconds) // size)
    return f"{number} {unit}" if seconds >= 0 else f"in {number} {unit}"


def _folded(label: str, text: str, columns: int | None) -> Iterator[tuple[str, str]]:
    yield from ((line, "") for line in tables.folded(f"  {label:<12}", text, columns))


def _wiring(wiring: WiringRow | None) -> str:
    if wiring is None:
        return "unknown: systemd does not answer, or root alone can see it"
    by = {True: "starts through credferry-launch", False: "starts without the launcher", None: "unknown"}
    file = f", by {wiring.file}" if wiring.file else ""
    drop_ins = f"; drop-ins: {', '.join(wiring.drop_ins)}" if wiring.drop_ins else "; no drop-in"
    return f"{by[wiring.launcher]}{file}{drop_ins}"


def _settings(settings: dict[str, Any]) -> str:
    """What a VM's settings are, without those that are as by default."""
    shown = {
        key: value for key, value in settings.items() if key in _ALWAYS or value != _DEFAULTS.get(key, value)
    }
    return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in shown.items())


def _next(row: ShowRow) -> str:
    would = ", then ".join(row.next)
    if not would:
        return _UNTIL.get(row.status.state, "nothing until a secret changes").format(vm=row.status.vm)
    return would if row.status.agent else f"{would}, once an agent runs"


def _secrets(
    secrets: list[SecretRow], columns: int | None, where: tzinfo | None, now: datetime
) -> Iterator[tuple[str, str]]:
    headings = ("CREDENTIAL", "KIND", "FINGERPRINT", "RUNS", "AGE", "CHANGED", "EXPIRES", "FROM")
    cells = [
        (
            each.credential,
            each.kind.value,
            (each.published or "-")[:_SHORT],
            _runs(each),
            _age(each, now),
            moment(each.changed, where) if each.changed else "-",
            _expiry(each.expires, where, now),
            each.origin,
        )
        for each in secrets
    ]
    for line in tables.layout(headings, cells, columns, ("CHANGED", "KIND", "FROM")):
        yield line.text, "bold" if line.row is None else ""


def _age(secret: SecretRow, now: datetime) -> str:
    """How long ago a value came, and whether that is too long."""
    if secret.changed is None:
        return "-"
    since, limit = datetime.fromisoformat(secret.changed), secret.max_age_days
    is_over = limit is not None and (now - since).total_seconds() > limit * 86_400
    return age(since, now) + (f", over {limit} d" if is_over else "")


def _runs(secret: SecretRow) -> str:
    """Whether the VM runs what is published."""
    if secret.running is None or secret.published is None:
        return "-"
    return "it" if secret.running == secret.published else secret.running[:_SHORT]


def _expiry(expires: str | None, where: tzinfo | None, now: datetime) -> str:
    if expires is None:
        return "-"
    end = datetime.fromisoformat(expires)
    return f"expired {age(end, now)} ago" if end <= now else f"{moment(end, where)[:10]} ({age(end, now)})"


def _rotations(
    rotations: list[RotationRow], columns: int | None, where: tzinfo | None
) -> Iterator[tuple[str, str]]:
    headings = ("ROTATION", "RESULT", "GENERATION", "TOOK", "BY", "CHANGED")
    cells = [
        (
            moment(each.began, where),
            each.outcome,
            str(each.generation or "-"),
            f"{each.seconds:.1f} s",
            each.ordered.order if each.ordered else "change",
            ", ".join(change.credential for change in each.changed) or "-",
        )
        for each in rotations
    ]
    for line in tables.layout(headings, cells, columns, ("GENERATION", "TOOK", "CHANGED")):
        yield line.text, "bold" if line.row is None else ""
