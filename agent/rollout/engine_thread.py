# SPDX-License-Identifier: MIT
"""The one thread that talks to a fleet's engine. A stop of the agent does not wait for it.

A call may block for as long as all members of an etcd need to time out. Nothing that rolls back, seals or
looks waits for that. A job that a stop interrupts is found again: each begins by reading what is there.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class EngineThread:
    """Carries out jobs one after the other, in the order in which they were given."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._begun = threading.Lock()
        self._is_begun = False

    def submit(self, job: Callable[[], None]) -> None:
        """Carry out a job soon. Any thread may call this; it returns at once."""
        with self._begun:
            if not self._is_begun:
                self._is_begun = True
                self._thread.start()
        self._jobs.put(job)

    def raise_error(self) -> None:
        """Raise an error that a job could not handle, if there is one."""
        with suppress(queue.Empty):
            raise self._errors.get_nowait()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except BaseException as error:  # noqa: BLE001 (handed to the loop, which raises it)
                self._errors.put(error)
