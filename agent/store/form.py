# SPDX-License-Identifier: MIT
"""The form of the store: which releases can work with it.

``STATE/form`` holds the number of the form. A store without that file is empty or has form 1. Form 2 binds
each value to its generation's manifest, and the launcher checks that. A release that knows only form 1 would
treat such manifests as damaged, and seal everything again in form 1, which the present launcher refuses.
Such a release locks the file ``STATE/lock`` for each sealing. So in form 2 ``STATE/lock`` is a directory:
the old release then cannot seal or restart anything.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from credferry.agent.errors import StoreError, StoreFormError
from credferry.agent.store.files import replace_durably, sync_directory
from credferry.agent.untrusted import read_untrusted

if TYPE_CHECKING:
    from pathlib import Path

FORM: Final = 2
_FILE: Final = "form"
_BARRED: Final = "lock"
_NOTE: Final = "this-store-is-of-form-2--see-how-to-upgrade"
_DIGITS_MAX: Final = 4


def read(state: Path) -> int:
    """The form of a store; 1 where there is no file, or no number in it. Raises `StoreError`."""
    try:
        content = read_untrusted(state / _FILE, limit=_DIGITS_MAX + 1, below=state).strip()
    except FileNotFoundError:
        return 1
    except OSError as error:
        raise StoreError(
            f"{state / _FILE}: {error.strerror}",
            hint="this must be a small file that the agent's user owns; see FILES in: man credferry",
        ) from None
    return int(content) if content.isdigit() else 1


def check(state: Path) -> None:
    """Raise `StoreFormError` for the form of a later release. Raises `StoreError` as `read` does."""
    found = read(state)
    if found > FORM:
        raise StoreFormError(
            f"the store {state} has form {found}, but this release of credferry knows forms up to {FORM}",
            hint="install the release that wrote it; until then the agent seals and restarts nothing",
        )


def is_barred(state: Path) -> bool:
    """Whether the store is closed to releases that know only form 1."""
    return (state / _BARRED).is_dir()


def write(state: Path) -> None:
    """Write the present form, and close the store to releases that know only form 1. Raises OSError."""
    barred = state / _BARRED
    if not barred.is_dir():
        barred.unlink(missing_ok=True)
        barred.mkdir(0o700)
    note = barred / _NOTE
    os.close(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600))
    sync_directory(state)
    replace_durably(state / _FILE, b"%d\n" % FORM)
