# SPDX-License-Identifier: MIT
"""Loads structlog without modules that it would load only for uses that the agent does not make of it.

rich draws tracebacks on a terminal. asyncio is for logging from coroutines; it brings ssl with it. Together
they took 6.6 MiB of the agent's memory.
"""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def load(*, for_terminal: bool) -> None:
    """Load structlog: with rich only ``for_terminal``, and without asyncio, which is loaded at its use."""
    _load_at_use("asyncio")
    with nullcontext() if for_terminal else _as_if_missing("rich"):
        importlib.import_module("structlog")


@contextmanager
def _as_if_missing(name: str) -> Iterator[None]:
    """Let an import of the module fail meanwhile, as if it were not installed. structlog expects that."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's own mark for this (reference, "The import system")
    try:
        yield
    finally:
        del sys.modules[name]


def _load_at_use(name: str) -> None:
    """Put a stand-in in the place of a module. It loads the module when it is asked for anything in it.

    `importlib.util.LazyLoader` does not help: an import statement alone makes Python 3.11 ask its module for
    ``__spec__``, which loads it.
    """
    if name in sys.modules:
        return
    stand_in, loading = ModuleType(name), threading.Lock()

    def load_and_get(attribute: str) -> object:
        with loading:  # another thread must not load it a second time
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
                importlib.import_module(name)
        return getattr(importlib.import_module(name), attribute)

    stand_in.__getattr__ = load_and_get  # type: ignore[method-assign]  # as PEP 562 has it
    sys.modules[name] = stand_in
