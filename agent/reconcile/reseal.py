# SPDX-License-Identifier: MIT
"""Seals generations again when the setting for the store, or the host's TPM, is another. Restarts nothing.

Generations keep their numbers, digests and values, so nothing is due for a VM. A generation that does not
open any more, as after the TPM was cleared, counts as none. The next check then seals a new one from what is
published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.errors import SealError, StoreError, TpmError, UnlistableError
from credferry.agent.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from credferry.agent.sealing.policy import OpeningPolicy
    from credferry.agent.store.generations import Store

_log = Messages()
_PERIOD = 60.0
"""Seconds after which the agent makes sure again that the TPM opens what it sealed."""


@dataclass(slots=True)
class Resealing:
    """Keeps a store sealed as its setting says."""

    store: Store
    monotonic: Callable[[], float]
    _examined_at: float = field(default=-math.inf, init=False)

    def keep(self, vms: Iterable[str]) -> bool:
        """Make sure that the store's values open, and are sealed as the setting says.

        Returns whether anything was sealed again. Without a TPM this costs nothing. With one, it costs one
        operation of the TPM a minute. Raises `SealError` if the TPM cannot be used, and `StoreError`.
        """
        sealing, now = self.store.sealing, self.monotonic()
        if sealing.obstacle is None and now - self._examined_at < _PERIOD:
            return False
        sealing.examine()
        self._examined_at = now
        if sealing.is_settled:
            return False
        with self.store.lock():
            lost, sealed = self._renew(vms)
        if lost:
            return sealed
        sealing.settle()
        return sealed

    def _renew(self, vms: Iterable[str]) -> tuple[list[str], bool]:
        """Seal each generation of these VMs again. Returns the VMs whose current one does not open."""
        wanted = self.store.sealing.policy
        lost, has_sealed = [], False
        for vm in vms:
            current = self.store.current_number(vm)
            try:
                numbers = sorted(self.store.numbers(vm))
            except UnlistableError:  # a later call seals it again, and this one the others
                lost.append(vm)
                continue
            for number in numbers:
                opens, sealed = self._renew_one(vm, number, wanted)
                has_sealed |= sealed
                if not opens and number == current:
                    if self.store.current(vm) is not None:
                        _log.warning("what is sealed does not open; sealing it again", vm=vm)
                    self.store.give_up(vm, number)
                    lost.append(vm)
        return lost, has_sealed

    def _renew_one(self, vm: str, number: int, wanted: OpeningPolicy | None) -> tuple[bool, bool]:
        """Whether a generation opens, and whether it was sealed again."""
        manifest = self.store.generation(vm, number)
        if manifest is None:
            return True, False  # it counts as none already
        try:
            values = self.store.values(vm, number)
        except TpmError:
            if self.store.sealing.options is not None:
                raise
            return False, False  # the host goes over to its own key, perhaps because the TPM is broken
        except (SealError, StoreError):
            return False, False
        if self.store.policies(vm, number) == {wanted}:
            return True, False
        try:
            self.store.replace(manifest, values, only_values=True)
        except OSError as error:
            raise StoreError(
                f"{self.store.vm_directory(vm)}: cannot seal this again: {error.strerror}",
                hint="the store must be on a writable file system with room; the agent retries",
            ) from None
        return True, True
