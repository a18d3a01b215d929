# SPDX-License-Identifier: MIT
"""The event monitor: each event one pretty-printed JSON document, followed by an empty line.

The form is that of cloud-hypervisor's event_monitor/src/lib.rs.
"""

from __future__ import annotations

import contextlib
import json
import os
import time


class Events:
    """Writes events to a descriptor, if there is one. A reader that is slow or gone loses events."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._start = time.monotonic_ns()
        if descriptor is not None:
            os.set_blocking(descriptor, False)

    def emit(self, source: str, event: str) -> None:
        """Tell that something happened: to the ``vmm`` or to the ``vm``."""
        if self._descriptor is None:
            return
        seconds, nanos = divmod(time.monotonic_ns() - self._start, 10**9)
        document = {
            "timestamp": {"secs": seconds, "nanos": nanos},
            "source": source,
            "event": event,
            "properties": None,
        }
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps(document, indent=2).encode() + b"\n\n")
