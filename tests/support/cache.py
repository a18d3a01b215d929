# SPDX-License-Identifier: MIT
"""The one directory outside the checkout where the tests keep things; `bootstrap` decides the same way."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """The cache, made where it is missing: readable by all, as processes of other users look into it."""
    chosen = os.environ.get("CREDFERRY_CACHE")
    if chosen:
        cache = Path(chosen).absolute()
    elif os.geteuid() == 0:
        cache = Path("/var/cache/credferry")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "credferry"
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    return cache
