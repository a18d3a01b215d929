# SPDX-License-Identifier: MIT
"""The command `credferry`: one file a verb."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from agent import hardening, log
from agent.cli import agent, audit, check, guest_key, health, hold, plan, polkit_rule, status, sync
from agent.config import load
from agent.errors import CredferryError, ExitStatus
from agent.ownership import as_owner_of

_WRITING = {"sync", "hold", "release", "retry"}
"""Verbs that write into the state directory, beside an agent that need not be root."""
app = typer.Typer(
    name="credferry",
    help="Ferries secrets into cloud-hypervisor microVMs, and does it again whenever one rotates.",
    no_args_is_help=True,
    # Its pretty tracebacks show what local variables hold.
    pretty_exceptions_enable=False,
)
for _verb in (agent, sync, plan, status, check, audit, hold, guest_key, polkit_rule, health):
    _verb.register(app)


def _as_owner(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that, as root, works in the state directory as the one to whom that belongs."""

    @functools.wraps(verb)
    def owned(config: Path, **arguments: Any) -> None:  # noqa: ANN401 (whatever the verb takes)
        with as_owner_of(Path(load(config).state_directory)):
            verb(config=config, **arguments)

    return owned


for _command in app.registered_commands:
    if _command.name in _WRITING and _command.callback is not None:
        _command.callback = _as_owner(_command.callback)


def main() -> None:
    """Run a verb; end with a status of `ExitStatus`, and one line on standard error if it failed."""
    log.configure()
    hardening.harden()  # first: all but the least verbs come to hold values
    try:
        app()
    except CredferryError as error:
        _fail(f"{error}: {error.hint}", error.status)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitStatus.OK)
    except Exception as error:  # noqa: BLE001 (an exception's own text may quote a value; its place may not)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {frame.name}, line {frame.lineno}"
        _fail(f"internal error: {where}: please report it", ExitStatus.INTERNAL)


def _fail(line: str, status: ExitStatus) -> None:
    # A name from the configuration may hold anything, also what a terminal obeys.
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(line.split()))
    print(f"credferry: {shown}", file=sys.stderr)  # noqa: T201 (the one line)
    sys.exit(status)
