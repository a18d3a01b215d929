# SPDX-License-Identifier: MIT
"""How long the first sealing of a boot waits for a source."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.daemon.once import settled_look
from credferry.agent.errors import HiddenSourceError

if TYPE_CHECKING:
    from credferry.agent.reconcile.observer import Observer


class _Blind:
    """Stands in for an observer whose unit hides the source from it: a unit test has no such unit."""

    def look(self, *_arguments: object) -> NoReturn:
        raise HiddenSourceError("hidden", hint="show it")


@pytest.mark.timeout(60)
def test_a_source_that_the_unit_hides_is_not_waited_for() -> None:
    """It cannot come: the first sealing of a boot ends at once, and the VMs start on what they had."""
    an_hour_from_now = time.monotonic() + 3600
    with pytest.raises(HiddenSourceError):
        settled_look(parse(b"", Path("config.toml")), cast("Observer", _Blind()), an_hour_from_now, ())
