# SPDX-License-Identifier: MIT
"""Property tests on a slow machine: an example, or the making of one, may take as long as it does."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import pytest


def test_a_slow_machine_fails_no_property(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by an hour each time it is read, as on a machine that does everything else first."""

    @settings(database=None)
    @given(st.lists(st.integers()))
    def a_property(numbers: list[int]) -> None:
        assert isinstance(numbers, list)

    hours = itertools.count(step=3600)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(hours)))
    a_property()
