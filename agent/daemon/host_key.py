# SPDX-License-Identifier: MIT
"""The host's key that the agent seals with, and the move to another one, which may need several tries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.reconcile import rekey
from credferry.agent.store.failures import StoreFailures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from credferry.agent.config.model import Config
    from credferry.agent.store.generations import Store


class HostKey:
    """Which key file the agent has read, and which moves to another key it has not finished."""

    def __init__(self) -> None:
        self._identity: rekey.FileIdentity | None = None
        self._unfinished: tuple[Store, ...] = ()
        """The store with each key that the agent began to go over to and has not, the newest first."""
        self._former: tuple[Store, ...] = ()
        """The store with each earlier key that may still have sealed something of `_left`."""
        self._left: set[str] = set()
        """VMs for which the store failed when the agent went over to another key."""
        self._failures = StoreFailures()

    def is_other(self, config: Config) -> bool:
        """Whether the key file may be another one than the file that was read."""
        identity = rekey.identity(Path(config.host_key))
        return identity is None or identity != self._identity

    def renew(self, configs: Sequence[Config], present: Store, store: Store) -> bool:
        """Seal all generations with the key of ``store``, if this key is another. Returns whether it is.

        Raises `StoreError`; the next call then continues.
        """
        is_other = store.key != present.key
        if is_other or self._unfinished:
            befores = (*self._unfinished, present, *self._former)
            if store.key not in [each.key for each in befores]:
                self._unfinished = (store, *self._unfinished)
            self._left = rekey.renew(configs, befores, store)
            self._former = befores if self._left else ()
        store.of_earlier_key.update(self._left)
        return is_other

    def catch_up(self, configs: Sequence[Config], store: Store) -> None:
        """Seal what could not be read or written at the move to the key of ``store``, once it can be.

        Each call tries again, except for a VM that no configuration has now: it may come back.
        """
        known, self._failures = {name for config in configs for name in config.vms}, StoreFailures()
        if self._left & known:
            with self._failures.kept():
                left = rekey.renew(configs, self._former, store, self._left)
                self._left = left | (self._left - known)
                self._former = self._former if self._left else ()
        # Also after a `renew` that has returned to this key: ``store`` is then still the former one.
        store.of_earlier_key.update(self._left)
        store.of_earlier_key.intersection_update(self._left)

    def raise_failure(self) -> None:
        """Raise the `StoreError` of the last `catch_up`, if there was one."""
        self._failures.raise_first()

    def use(self, identity: rekey.FileIdentity | None) -> None:
        """Note that everything is sealed with the key of this file."""
        self._identity, self._unfinished = identity, ()
