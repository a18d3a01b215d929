# SPDX-License-Identifier: MIT
"""Data that all checks use: the configuration, the units' names, and one look as the agent does it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from credferry.agent.config.choosing import chosen
from credferry.agent.config.loading import load
from credferry.agent.config.model import HOST_KEY_FILE, Config
from credferry.agent.doctor import probe
from credferry.agent.doctor.finding import UnseenError
from credferry.agent.errors import BusError, ConfigurationError, CredferryError, KeyFileError, SourceError
from credferry.agent.reconcile.observer import Observer
from credferry.agent.rollout.pacing import RestartPolicyGate
from credferry.agent.store.opening import open_store_untouched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from credferry.agent.config.model import VmConfig
    from credferry.agent.reconcile.decision import Decision
    from credferry.agent.reconcile.observed import Observed
    from credferry.agent.store.generations import Store

AGENT: Final = "credferry.service"
SEAL: Final = "credferry-seal.service"
HOST_KEY: Final = Path(HOST_KEY_FILE)
"""PID 1 reads the key from this path only."""


class Chain:
    """The chain from the source to the guests, on this host. Each part is loaded when a check needs it.

    If the configuration cannot be read, the defaults apply, and there are no VMs.
    """

    def __init__(self, file: Path, names: Sequence[str] = ()) -> None:
        self.file = file
        self.error: ConfigurationError | None = None
        try:
            self.config = load(file)
        except ConfigurationError as error:
            self.error = error
            self.config = Config(file=file)
        self.is_of_all = not names or self.error is not None
        """Whether all VMs are examined, and not only those that were asked for."""
        self.vms: list[VmConfig] = (
            list(self.config.vms.values()) if self.is_of_all else chosen(self.config, names)
        )

    @cached_property
    def store(self) -> Store:
        """The store, opened with the host's key. Raises `KeyFileError`."""
        return open_store_untouched(self.config)

    @cached_property
    def first_opened(self) -> str:
        """The first VM whose generation can be opened; empty if there is none. Raises `KeyFileError`."""
        return next((vm.name for vm in self.vms if self.store.current(vm.name) is not None), "")

    @cached_property
    def observed(self) -> Mapping[str, tuple[Observed, Decision]] | CredferryError:
        """What the agent would see of each VM, and what it would do; or why it would see nothing.

        Findings must not contain the values. Raises `UnseenError` if the caller is not root.
        """
        if not probe.is_root():
            raise UnseenError("what is published and sealed")
        from credferry.agent.systemd.manager import (  # noqa: PLC0415 (GObject's introspection takes long to load)
            SystemBus,
        )

        try:
            manager = SystemBus()
            try:
                look = Observer(self.config, self.store).look(self.vms, manager)
                gate = RestartPolicyGate(self.config, self.store, is_single_look=True)
                look = gate.hold_back(look)
            finally:
                manager.close()
        except (KeyFileError, SourceError, BusError) as error:
            return error
        pairs = zip(look.observed, look.decisions, strict=True)
        return {seen.vm.name: (seen, decision) for seen, decision in pairs}

    def seen(self, vm: VmConfig) -> tuple[Observed, Decision]:
        """As `observed`, for one VM. Raises `UnseenError`; the cause is reported as a separate finding."""
        found = self.observed
        if isinstance(found, CredferryError):
            raise UnseenError(f"{vm.name}: {found}")
        return found[vm.name]

    def unit(self, vm: VmConfig) -> Mapping[str, Any]:
        """Systemd's properties of a VM's unit. Raises `UnseenError`."""
        return probe.unit(vm.unit)

    @property
    def state(self) -> Path:
        """The state directory."""
        return Path(self.config.state_directory)

    @cached_property
    def agent_user(self) -> str:
        """The user that the agent runs as. Raises `UnseenError`."""
        return probe.unit(AGENT).get("User") or "root"
