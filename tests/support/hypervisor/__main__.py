# SPDX-License-Identifier: MIT
"""Run by path: makes the package importable wherever its directory lies, and starts it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    # Isolated mode keeps a script's own directory out of the search path, so it is put there by hand; and
    # no bytecode is written beside it, for it may lie in somebody's read-only or shared tree.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(here.parent))
    sys.exit(importlib.import_module(f"{here.name}.program").main(sys.argv[1:]))
