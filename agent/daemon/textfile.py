# SPDX-License-Identifier: MIT
"""The file that metrics are written to. Without one in the configuration, there are no metrics."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from credferry.agent.audit.writer import Fact
    from credferry.agent.config.model import MetricsConfig
    from credferry.agent.daemon.metrics import Metrics
    from credferry.agent.log import Conditions
    from credferry.agent.reconcile.observer import Look
    from credferry.agent.rollout.slots import FleetView
    from credferry.agent.store.generations import Store

_log = Messages()


@dataclass(slots=True)
class Textfile:
    """Metrics since a configuration first named a file for them. Any thread may call `hear`."""

    monotonic: Callable[[], float] = time.monotonic
    metrics: Metrics | None = None
    """None until a configuration names a file."""
    _written: object = None
    _written_at: float = 0.0

    def use(self, config: MetricsConfig) -> None:
        """Make metrics, if the configuration is the first one that asks for them."""
        if config.textfile is not None and self.metrics is None:
            from credferry.agent.daemon.metrics import Metrics  # noqa: PLC0415 (prometheus-client is large)

            self.metrics = Metrics()

    def hear(self, fact: Fact) -> None:
        """Count a fact that was just written to the audit."""
        if self.metrics is not None:
            self.metrics.hear(fact)

    def looked(self, look: Look, store: Store, *, with_source: bool) -> None:
        """Note the state of all VMs."""
        if self.metrics is not None:
            self.metrics.looked(look, store, with_source=with_source)

    def see_fleet(self, view: FleetView) -> None:
        """Note what is known of the fleet."""
        if self.metrics is not None:
            self.metrics.see_fleet(view)

    def keep(self, config: MetricsConfig, conditions: Conditions, period: float, now: float) -> None:
        """Call `write_if_due`. Logs once that the file cannot be written, and once that it can be again."""
        try:
            self.write_if_due(config, conditions.keys, period)
        except OSError as error:
            if conditions.begin("metrics", str(error), now):
                _log.error("metrics cannot be written", file=config.textfile, reason=error.strerror)
        else:
            if counted := conditions.end("metrics", now):
                _log.info("metrics can be written again", unavailable_for=counted)

    def write_if_due(self, config: MetricsConfig, lacks: Collection[str], period: float) -> None:
        """Write the file if something changed, or after ``period`` seconds. Raises OSError."""
        if config.textfile is None or self.metrics is None:
            return
        now, told = self.monotonic(), (config.textfile, self.metrics.key(lacks))
        if told == self._written and now - self._written_at < period:
            return
        replace(Path(config.textfile), self.metrics.render(lacks))
        self._written, self._written_at = told, now


def replace(path: Path, content: bytes) -> None:
    """Replace a file that others read, mode 0644 whatever the umask, in one step. Raises OSError.

    prometheus-client's own ``write_to_textfile`` leaves the mode to the umask, and a collector drops a file
    that it may not read. This function also follows no symlink that another user may have put there.
    """
    temporary = path.with_name(f".{path.name}.new")  # a collector takes *.prom only
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
