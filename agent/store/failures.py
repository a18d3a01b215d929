# SPDX-License-Identifier: MIT
"""Keeps the errors of single VMs while the work goes on with the others."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from credferry.agent.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


class StoreFailures:
    """The errors of one round over several VMs. One VM's directory may have another owner, say."""

    def __init__(self) -> None:
        self._first: StoreError | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Do the work on one VM. A `StoreError` ends this work alone."""
        try:
            yield
        except StoreError as error:
            self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first error of the round, if there was one: the caller has then done all it can."""
        try:
            if self._first is not None:
                raise self._first
        finally:
            self._first = None  # the error's traceback has this object, and what the caller had read
