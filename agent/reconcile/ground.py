# SPDX-License-Identifier: MIT
"""What a start of a VM needs of the host: the host's key, the sealed generation, and room for files."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from credferry.agent.errors import KeyFileError, SealError, StoreError, TpmError, describe
from credferry.agent.store.known import files_of
from credferry.agent.store.opening import present_key
from credferry.launcher.handoff import HandoffError

if TYPE_CHECKING:
    from credferry.agent.config.model import Config
    from credferry.agent.sealing.keys import CredentialKey
    from credferry.agent.store.generations import Store

_FILES_LEAST, _ROOM_LEAST = 64, 1 << 20
"""Files and bytes that must be free in the runtime directory before a restart. A start makes some files
there, one of them a copy of the manifest."""

_TPM_SECONDS = 5.0
"""For so long a TPM that has opened the store counts as the same: many VMs may be due at once."""


@dataclass(frozen=True, slots=True)
class HostGround:
    """Implements `readiness.Ground` with the host's key file and the store, as PID 1 will find them."""

    config: Config
    store: Store
    _opened: dict[str, tuple[object, str]] = field(default_factory=dict)
    """By VM: its generation's files at the last try to open them, and the result of that try."""
    _opening: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """Held while a generation is opened. Two threads that ask about it at once open it once."""

    def key(self) -> CredentialKey:
        """See `Ground`."""
        try:
            return present_key(self.config)
        except FileNotFoundError:
            raise KeyFileError(
                f"{self.config.host_key}: does not exist",
                hint="restore it from a backup; or make a new one: systemd-creds setup",
            ) from None

    def is_known(self, key: CredentialKey) -> bool:
        """See `Ground`."""
        return key == self.store.key

    def unopened(self, vm: str, key: CredentialKey) -> str:
        """See `Ground`."""
        place = self.place(vm)
        try:
            files = files_of(place)
        except OSError as error:
            return f"{place}: {error.strerror}"
        sealing = self.store.sealing
        if sealing.options is not None and sealing.is_bound:
            sealing.examine(within=_TPM_SECONDS)  # what opened once opens again only with the same TPM
        seen = files, sealing.witness
        with self._opening:
            last = self._opened.get(vm)
            if last is None or last[0] != seen:
                # What this process has just sealed with this very key opens with it.
                is_known = sealing.options is None and self.store.known.is_written(vm, files)
                said = "" if is_known and self.is_known(key) else self._try(vm, key)
                last = self._opened[vm] = seen, said
        return last[1]

    def lacks_tpm(self) -> str:
        """See `Ground`."""
        sealing = self.store.sealing
        return describe(sealing.obstacle) if sealing.obstacle is not None and sealing.is_bound else ""

    def _try(self, vm: str, key: CredentialKey) -> str:
        try:
            self.store.with_key(key).values(vm)
        except TpmError:
            raise
        except (StoreError, SealError, HandoffError) as error:
            return f"{self.place(vm)}: {error}"
        return ""

    def place(self, vm: str) -> str:
        """See `Ground`."""
        return f"{self.store.vm_directory(vm)}/current"

    def lacks_room(self) -> str:
        """See `Ground`. Any user with a directory there can use up the free space."""
        runtime = self.config.runtime_directory
        try:
            found = os.statvfs(runtime)
        except OSError:
            return ""
        # A file system without a fixed number of files reports 0.
        if found.f_files and found.f_favail < _FILES_LEAST:
            return (
                f"{runtime} has no room for more files: find out what fills it with: du --inodes {runtime}"
            )
        if found.f_bavail * found.f_frsize < _ROOM_LEAST:
            return f"{runtime} is full: find out what fills it with: du {runtime}"
        return ""
