# SPDX-License-Identifier: MIT
"""What this process has open, to be compared before and after what must leave nothing open."""

from __future__ import annotations

import os
from contextlib import suppress

_OWN = "/proc/self/fd"


def opened() -> set[tuple[int, str]]:
    """Each open descriptor, with what it leads to.

    Compare with ``<=``, so that nothing new is open. There can be fewer: a thread of an earlier test may
    close its own meanwhile, as a watch does after it was stopped, and so may Python's garbage collector.
    """
    found = set()
    listing = f"/proc/{os.getpid()}/fd"
    for number in os.listdir(_OWN):  # noqa: PTH208 (names suffice)
        with suppress(FileNotFoundError):  # such as that of the listing itself
            target = os.readlink(f"{_OWN}/{number}")  # noqa: PTH115 (as above)
            if target != listing:
                found.add((int(number), target))
    return found
