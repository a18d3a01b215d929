# SPDX-License-Identifier: MIT
"""The VMM's state: at most one VM's configuration, and at most one VM that runs.

The same states, errors and events as in cloud-hypervisor v53's vmm/src/lib.rs.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from . import machine
from .machine import BootError, Machine, Outcome
from .validate import ValidationError, validate

if TYPE_CHECKING:
    from .events import Events
    from .schema import Json

_NOT_CREATED, _NOT_RUNNING = "VM is not created", "VM is not running"
_ABSENT = frozenset({_NOT_CREATED, "VM config is missing"})


class VmmError(Exception):
    """A request that fails; each argument is one link of the chain that the answer shows."""

    @property
    def status(self) -> int:
        """The HTTP status that the real one gives it."""
        return 404 if self.args[1:] and self.args[1] in _ABSENT else 500


class Vmm:
    """One VMM. Each method is one request of the API; each raises `VmmError`."""

    def __init__(self, events: Events, *, light: bool, no_shutdown: bool) -> None:
        self._events = events
        self._light = light
        self._no_shutdown = no_shutdown
        self._config: Json | None = None
        self.machine: Machine | None = None

    def create(self, config: Json) -> None:
        """Keep a configuration; nothing is checked but that there is none yet."""
        if self._config is not None:
            raise VmmError("The VM could not be created", "VM is already created")
        self._config = config

    def boot(self) -> None:
        """Check the configuration and start the VM."""
        failed = "The VM could not boot"
        if self.machine is not None:
            raise VmmError(failed, "VM is already created")
        self._events.emit("vm", "booting")
        if self._config is None:
            raise VmmError(failed, "VM config is missing")
        self.machine = self._start(failed)
        self._events.emit("vm", "booted")

    def info(self) -> Json:
        """The whole configuration, OEM strings included, and the state."""
        if self._config is None:
            raise VmmError("The VM info is not available", _NOT_CREATED)
        zones = self._config["memory"].get("zones", ())
        size = self._config["memory"]["size"] + sum(zone["size"] for zone in zones)
        state = "Created" if self.machine is None else "Running"
        return {"config": self._config, "state": state, "memory_actual_size": size}

    def power_button(self) -> None:
        """Ask the guest to power off."""
        if self.machine is None:
            raise VmmError("Error triggering power button", _NOT_RUNNING)
        self.machine.power_button()

    def shutdown_vm(self) -> None:
        """Stop the VM; its configuration stays."""
        if self.machine is None:
            raise VmmError("The VM could not shutdown", _NOT_RUNNING)
        self.machine.stop()
        self.machine = None
        self._events.emit("vm", "shutdown")

    def reboot(self) -> None:
        """Start the VM anew, in this process and with the configuration that it has: the old strings.

        Until it has started, the VMM does nothing else: no request is answered, and no signal ends it.
        """
        self._events.emit("vm", "rebooting")
        failed = "The VM could not reboot"
        if self.machine is None:
            raise VmmError(failed, _NOT_CREATED)
        self.machine.stop()
        self.machine = None
        _work(float(os.environ.get("CREDFERRY_STANDIN_RECREATES", "0.2")))
        self.machine = self._start(failed)
        self._events.emit("vm", "rebooted")

    def delete(self) -> None:
        """Stop the VM if it runs, and forget its configuration; nothing happens where there is none."""
        if self._config is None:
            return
        if self.machine is not None:
            self.shutdown_vm()
        for descriptor in _descriptors(self._config):
            with contextlib.suppress(OSError):  # those of a command line may never have been open
                os.close(descriptor)
        self._config = None
        self._events.emit("vm", "deleted")

    def shutdown(self) -> None:
        """The VM's end and the VMM's."""
        self.delete()
        self._events.emit("vmm", "shutdown")

    def add_net(self, net: Json) -> None:
        """Add a network device to a VM that does not run yet; the VM owns its descriptors."""
        failed = "The network device could not be added to the VM"
        if self._config is None:
            raise VmmError(failed, _NOT_CREATED)
        if self.machine is not None:
            raise VmmError(failed, "the stand-in adds devices before boot only")
        config = {**self._config, "net": [*self._config.get("net", ()), net]}
        try:
            validate(config)
        except ValidationError as error:
            raise VmmError(failed, "Failed to validate config", *error.args) from None
        self._config = config

    def guest_ended(self, outcome: Outcome) -> int | None:
        """Follow a VM that ended by itself; the VMM's exit status if it ends, too."""
        match outcome:
            case Outcome.RESET:
                try:
                    self.reboot()
                except VmmError:
                    return 1
                return None
            case Outcome.POWEROFF if self._no_shutdown:
                self.shutdown_vm()
                return None
            case Outcome.POWEROFF:
                self.shutdown()
                return 0
            case Outcome.FAILED:
                self.shutdown()
                return 1

    def _start(self, failed: str) -> Machine:
        config = self._config or {}
        try:
            validate(config)
        except ValidationError as error:
            raise VmmError(failed, "Failed to validate config", *error.args) from None
        for descriptor in _descriptors(config):
            try:
                os.fstat(descriptor)
            except OSError as error:
                raise VmmError(
                    failed,
                    "Error from device manager",
                    "Cannot create virtio-net device",
                    "Error calling dup() on tap fd",
                    f"{error.strerror} (os error {error.errno})",
                ) from None
        try:
            return machine.start(config, light=self._light)
        except BootError as error:
            raise VmmError(failed, *error.args) from None


def _work(seconds: float) -> None:
    """Use the CPU, as the real one does to map and fill the memory of a VM that it creates again."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def _descriptors(config: Json) -> list[int]:
    return [descriptor for net in config.get("net", ()) for descriptor in net.get("fds", ())]
