# SPDX-License-Identifier: MIT
"""The verbs, as typer has them."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from credferry.agent import __version__

VERBS = {
    "agent": "agent",
    "reload": "reload",
    "sync": "sync",
    "plan": "plan",
    "status": "status",
    "show": "show",
    "check": "check",
    "doctor": "doctor",
    "audit": "audit",
    "hold": "hold",
    "release": "hold",
    "retry": "hold",
    "approve": "approve",
    "fleet": "fleet",
    "guest-key": "guest_key",
    "polkit-rule": "polkit_rule",
    "health": "health",
    "restart": "restart",
    "rotate": "restart",
    "rollback": "restart",
}
"""Each verb's module here, loaded when the verb is called: all of them take longer than most verbs do."""


def application(verb: str | None = None) -> typer.Typer:
    """The command with this verb, or with all of them."""
    app = typer.Typer(
        name="credferry",
        help="Deliver secrets to cloud-hypervisor microVMs, and again whenever one rotates.",
        no_args_is_help=True,
        # Ours, in contrib/completions, need not start the program at each key.
        add_completion=False,
        # Plain help and errors: as wide as the terminal, without frames, and quickly there.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
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
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"credferry {__version__}")  # noqa: T201 (what was asked for)
        raise typer.Exit
