# SPDX-License-Identifier: MIT
"""The command's verbs, arguments and options, as the application itself has them."""

from __future__ import annotations

import enum
import typing
from dataclasses import dataclass
from typing import Any

import typer.main

from credferry.agent.cli.application import application
from credferry.agent.reconcile.decision import State


class Value(enum.Enum):
    """What stands for a value on the command line, as far as a shell can help with it."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()
    VM = enum.auto()
    CHOICE = enum.auto()
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class Option:
    """An option; ``metavar`` is empty for one without a value."""

    names: tuple[str, ...]
    metavar: str
    help: str
    value: Value
    choices: tuple[str, ...] = ()
    is_required: bool = False
    is_repeatable: bool = False
    default: str = ""
    variable: str = ""

    @property
    def takes_value(self) -> bool:
        """Whether a word follows."""
        return bool(self.metavar)


@dataclass(frozen=True, slots=True)
class Argument:
    """A positional argument."""

    metavar: str
    help: str
    value: Value
    choices: tuple[str, ...] = ()
    is_required: bool = True
    is_repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """The command itself, or a verb; ``path`` are the verbs that lead to it."""

    path: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]

    def all(self) -> typing.Iterator[Command]:
        """This one and all below it."""
        yield self
        for each in self.commands:
            yield from each.all()


HELP = Option(("--help", "-h"), "", "Show the help of the command or of a verb, and exit.", Value.OTHER)
"""Every verb has it."""
_STATES = tuple(state.value.replace(" ", "-") for state in State)
_BY_METAVAR = {"FILE": Value.FILE, "DIR": Value.DIRECTORY, "VM": Value.VM, "VMS": Value.VM}


def commands() -> Command:
    """The whole command."""
    return _command(typer.main.get_command(application()), ())


# Some versions of typer have click within them, and changed: its objects are taken as they come.
def _command(found: Any, path: tuple[str, ...]) -> Command:  # noqa: ANN401 (see above)
    parameters = [each for each in found.params if not getattr(each, "hidden", False)]
    below = getattr(found, "commands", {})
    return Command(
        path,
        " ".join((found.help or "").split()),
        (*(_option(each) for each in parameters if each.param_type_name == "option"), HELP),
        tuple(_argument(each) for each in parameters if each.param_type_name == "argument"),
        tuple(
            _command(each, (*path, name))
            for name, each in below.items()
            if not getattr(each, "hidden", False)
        ),
    )


def _option(found: Any) -> Option:  # noqa: ANN401 (see _command)
    choices = _STATES if found.metavar == "STATE" else _choices(found)
    metavar = "" if found.is_flag else found.metavar or "|".join(choices) or found.name.upper()
    plain = isinstance(found.default, (int, float, str)) and not isinstance(found.default, bool)
    default = str(found.default) if plain or "/" in str(found.default) else ""
    return Option(
        # Short names last: people read the long ones.
        tuple(sorted((*found.opts, *found.secondary_opts), key=lambda name: not name.startswith("--"))),
        metavar,
        found.help or "",
        Value.CHOICE if choices else _BY_METAVAR.get(metavar, Value.OTHER),
        choices,
        is_required=found.required,
        is_repeatable=found.multiple,
        default="" if found.is_flag else default,
        variable=found.envvar or "",
    )


def _argument(found: Any) -> Argument:  # noqa: ANN401 (see _command)
    choices = _choices(found)
    metavar = (found.metavar or found.name).upper()
    is_repeatable = found.nargs == -1
    if metavar == "VMS":
        metavar = "VM"
    return Argument(
        metavar,
        getattr(found, "help", None) or "",
        Value.CHOICE if choices else _BY_METAVAR.get(metavar, Value.OTHER),
        choices,
        is_required=found.required,
        is_repeatable=is_repeatable,
    )


def _choices(found: Any) -> tuple[str, ...]:  # noqa: ANN401 (see _command)
    if choices := getattr(getattr(found, "type", None), "choices", ()):
        return tuple(getattr(each, "value", each) for each in choices)
    annotation = getattr(getattr(found, "type_descriptor", None), "annotation", None)
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(str(each.value) for each in annotation)
    return ()
