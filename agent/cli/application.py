# SPDX-License-Identifier: MIT
"""The verbs, as typer has them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from credferry.agent import __version__
from credferry.agent.config.loading import load
from credferry.agent.store.ownership import as_owner_of

VERBS = {
    "agent": "agent",
    "sync": "sync",
    "plan": "plan",
    "status": "status",
    "check": "check",
    "doctor": "doctor",
    "audit": "audit",
    "hold": "hold",
    "release": "hold",
    "retry": "hold",
    "guest-key": "guest_key",
    "polkit-rule": "polkit_rule",
    "health": "health",
    "rotate": "rotate",
    "rollback": "rotate",
}
"""Each verb's module here, loaded when the verb is called: all of them take longer than most verbs do."""
_WRITING = {"sync"}
"""Verbs that write into the state directory, beside an agent that need not be root."""


def application(verb: str | None = None) -> typer.Typer:
    """The command with this verb, or with all of them."""
    app = typer.Typer(
        name="credferry",
        help="Ferries secrets into cloud-hypervisor microVMs, and does it again whenever one rotates.",
        no_args_is_help=True,
        # Ours, in contrib/completions, need not start the program at each key.
        add_completion=False,
        # Its pretty tracebacks show what local variables hold.
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _verbs(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        """Keep a verb a verb where it is the only one that is loaded."""

    for module in dict.fromkeys([VERBS[verb]] if verb in VERBS else VERBS.values()):
        import_module(f"credferry.agent.cli.{module}").register(app)
    for command in app.registered_commands:
        if command.name in _WRITING and command.callback is not None:
            command.callback = _as_owner(command.callback)
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"credferry {__version__}")  # noqa: T201 (what was asked for)
        raise typer.Exit


def _as_owner(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that, as root, works in the state directory as the one to whom that belongs."""

    @functools.wraps(verb)
    def owned(config: Path, **arguments: Any) -> None:  # noqa: ANN401 (whatever the verb takes)
        with as_owner_of(Path(load(config).state_directory)):
            verb(config=config, **arguments)

    return owned
