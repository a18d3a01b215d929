# SPDX-License-Identifier: MIT
"""Which VMs an operator means: names, patterns as a shell has them, or all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from credferry.agent.errors import ConfigurationError, UsageError
from credferry.agent.reconcile.decision import State

if TYPE_CHECKING:
    from credferry.agent.config.model import Config, VmConfig

VmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vm", help="Only this VM, or the VMs that match a pattern. Can be repeated.", metavar="VM"
    ),
]
VmArguments = Annotated[
    list[str], typer.Argument(help="Names of VMs in the configuration, or patterns such as 'web*'.")
]
SomeVmArguments = Annotated[
    list[str] | None,
    typer.Argument(help="Names of VMs in the configuration, or patterns such as 'web*'."),
]
AllOption = Annotated[bool, typer.Option("--all", help="All VMs in the configuration.")]
StateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--state", help="Only VMs in this state, such as failed. Can be repeated.", metavar="STATE"
    ),
]
_PATTERN = re.compile(r"[*?\[]")


def named(arguments: Sequence[str] | None, options: Sequence[str] | None) -> list[str]:
    """The VMs that a command names, as arguments and with ``--vm``."""
    return [*(arguments or ()), *(options or ())]


def chosen(config: Config, names: Sequence[str] | None) -> list[VmConfig]:
    """The VMs asked for, each once, by default all. A name may be a pattern, as a shell has them.

    Raises `ConfigurationError` for an unknown name, and for a pattern that no VM fits.
    """
    if not names:
        return list(config.vms.values())
    found = chain.from_iterable(_fitting(config, name) for name in names)
    return list({vm.name: vm for vm in found}.values())


def chosen_or_all(config: Config, names: Sequence[str] | None, *, is_all: bool) -> list[VmConfig]:
    """The VMs asked for, or all where ``--all`` says so. Raises `UsageError`, and as `chosen` does."""
    if is_all and names:
        raise UsageError("--all cannot be combined with names of VMs", hint="give one of the two")
    if not is_all and not names:
        raise UsageError("no VM is named", hint="name VMs, a pattern such as 'web*', or --all")
    return chosen(config, names)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of these, or fits one of them that is a pattern; always if there are none."""
    return not patterns or any(name == each or fnmatchcase(name, each) for each in patterns)


def is_pattern(name: str) -> bool:
    """Whether a name stands for any number of VMs."""
    return _PATTERN.search(name) is not None


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


def _fitting(config: Config, name: str) -> list[VmConfig]:
    if not is_pattern(name):
        return [config.vm(name)]
    fitting = [vm for vm in config.vms.values() if fnmatchcase(vm.name, name)]
    if not fitting:
        raise ConfigurationError(
            f"{config.file}: no VM matches the pattern {name!r}",
            hint="list their names with: credferry status",
        )
    return fitting
