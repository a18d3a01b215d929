# SPDX-License-Identifier: MIT
"""The operator's command: one file a verb, and the documents that --json prints.

May import: `agent.doctor`, `agent.daemon`, `agent.control`, `agent.rollout`, `agent.fleet`,
`agent.reconcile`, `agent.systemd`, `agent.audit`, `agent.store`, `agent.config`, `agent.sealing`,
`agent.untrusted`, `agent.printable`, `agent.hardening`, `agent.errors`, `agent`, `launcher.handoff`.
Never: a decision. A verb asks the agent or systemd, or reads, and prints.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from credferry.agent import hardening
from credferry.agent.config.model import DEFAULT_PATH, PATH_VARIABLE
from credferry.agent.errors import CredferryError, ExitStatus, Interrupted, describe, place
from credferry.agent.printable import printable

if TYPE_CHECKING:
    from types import FrameType

_ORDERS = frozenset({"sync", "restart", "rotate", "rollback", "release", "retry"})


def main() -> None:
    """Run a verb; end with a status of `ExitStatus`, and one line on standard error if it failed."""
    try:
        _main()
    except SystemExit as end:
        if threading.active_count() == 1 or isinstance(end.code, str):
            raise
        _leave(end.code or ExitStatus.OK)
    if threading.active_count() > 1:
        _leave(ExitStatus.OK)


def _leave(status: int) -> NoReturn:
    """End the process at once, without finalizing the interpreter. All that was printed is written first.

    Python 3.11 can crash when it finalizes its interpreter while another thread begins or waits: the thread
    uses a state that was freed (docs.python.org/3/c-api/init.html, "Cautions regarding runtime
    finalization"). A connection to the bus and the daemon's parts have such threads.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (BrokenPipeError, ValueError):  # nobody reads it, or it is closed
            continue
        except OSError as error:
            status = status or ExitStatus.FAILED
            with suppress(OSError):
                os.write(2, f"credferry: cannot write its output: {error.strerror}\n".encode())
    os._exit(status)


def _main() -> None:
    hardening.harden()  # first: all but the least verbs come to hold values
    try:
        _run(sys.argv[1:])
    except CredferryError as error:
        _fail(describe(error), error.status)
    except Interrupted:
        _end_by_interrupt(sys.argv[1:2])
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitStatus.OK)
    except Exception as error:  # noqa: BLE001 (an exception's own text may quote a value; its place may not)
        _fail(f"internal error: {place(error)}: please report it", ExitStatus.INTERNAL)


def _run(words: list[str]) -> None:
    match words:
        # As units start it. typer, and all that it is made of, stays in memory once it is loaded.
        case ["agent"]:
            _be_daemon(Path(os.environ.get(PATH_VARIABLE) or DEFAULT_PATH))
        case ["agent", "--config" | "-c", file] if not file.startswith("-"):
            _be_daemon(Path(file))
        case _:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, _interrupt)
            from credferry.agent.cli.application import application  # noqa: PLC0415 (see above)

            application(words[0] if words else None)()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _end_by_interrupt(verb: list[str]) -> None:
    """Say so in one line, and end as a shell expects it."""
    goes_on = ": the agent goes on with what it was asked for: see credferry status"
    print(f"credferry: interrupted{goes_on if verb and verb[0] in _ORDERS else ''}", file=sys.stderr)  # noqa: T201 (the one line)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _be_daemon(config: Path) -> None:
    from credferry.agent.daemon import (  # noqa: PLC0415 (of no use to other verbs, and not quickly loaded)
        main as daemon,
    )

    daemon.run(config)


def _fail(line: str, status: ExitStatus) -> None:
    # A name from the configuration may hold anything, also what a terminal obeys.
    shown = printable(" ".join(line.split()))
    if sys.stdout is not None:  # as it is if descriptor 1 is closed
        with suppress(BrokenPipeError):
            sys.stdout.flush()  # the table comes before the line about what is wrong in it
    print(f"credferry: {shown}", file=sys.stderr)  # noqa: T201 (the one line)
    sys.exit(status)
