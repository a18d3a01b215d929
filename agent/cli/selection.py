# SPDX-License-Identifier: MIT
"""Which VMs an operator means: names, patterns as a shell has them, or all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.config.choosing import chosen
from credferry.agent.errors import UsageError
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from credferry.agent.config.model import Config, VmConfig

VmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vm", help="Only this VM, or the VMs that match a pattern. Can be repeated.", metavar="VM"
    ),
]
_VMS = typer.Argument(help="Names of VMs in the configuration, or patterns such as 'web*'.", metavar="VM")
VmArguments = Annotated[list[str], _VMS]
SomeVmArguments = Annotated[list[str] | None, _VMS]
AllOption = Annotated[bool, typer.Option("--all", help="All VMs in the configuration.")]
StateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--state", help="Only VMs in this state, such as failed. Can be repeated.", metavar="STATE"
    ),
]


def named(arguments: Sequence[str] | None, options: Sequence[str] | None) -> list[str]:
    """The VMs that a command names, as arguments and with ``--vm``."""
    return [*(arguments or ()), *(options or ())]


def chosen_or_all(config: Config, names: Sequence[str] | None, *, is_all: bool) -> list[VmConfig]:
    """The VMs asked for, or all where ``--all`` says so. Raises `UsageError`, and as `chosen` does."""
    if is_all and names:
        raise UsageError("--all cannot be combined with names of VMs", hint="give one of the two")
    if not is_all and not names:
        raise UsageError("no VM is named", hint="name VMs, a pattern such as 'web*', or --all")
    return chosen(config, names)


def states(words: Iterable[str] | None) -> frozenset[State]:
    """States by their names, with ``-`` for a blank if need be; none for all. Raises `UsageError`."""
    known = {state.value: state for state in State}
    found = set()
    for word in words or ():
        state = known.get(word.replace("-", " "))
        if state is None:
            raise UsageError(
                f"--state: {word!r} is not a state",
                hint=f"give one of {', '.join(each.value.replace(' ', '-') for each in State)}",
            )
        found.add(state)
    return frozenset(found)
