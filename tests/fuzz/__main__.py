# SPDX-License-Identifier: MIT
"""``python -m tests.fuzz [--seconds N] [TARGET…]``: fuzz everything that reads bytes which others wrote."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr

try:
    import atheris  # type: ignore[import-untyped]  # it has no stubs
except ImportError:
    sys.exit(
        "atheris is not here: it has wheels for x86_64 and Python before 3.14 (tests/support/bootstrap)"
    )

from tests.fuzz.command import main

# What atheris says of each module that it instruments is of no use to anybody.
with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["credferry"]):
    from tests.fuzz.targets import TARGETS

sys.exit(main(TARGETS, sys.argv[1:]))
