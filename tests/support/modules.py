# SPDX-License-Identifier: MIT
"""The directory that the product's packages are imported from, for the programs that tests start."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from credferry import launcher

MODULES: Final = Path(launcher.__file__).absolute().parents[2]
"""What a program needs in its ``sys.path`` to import the code that this process tests."""
