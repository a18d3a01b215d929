# SPDX-License-Identifier: MIT
"""The configuration's data: what each key is, its type and its default.

One job: the keys, as a page of the manual lists them.
"""

from __future__ import annotations

import difflib
import enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from credferry.agent.config.fleet import FleetConfig
from credferry.agent.config.secrets import CredentialConfig, SourceConfig
from credferry.agent.config.units import Units
from credferry.agent.config.values import AbsolutePath, GroupName, MachineId, Pcrs, PromPath, Seconds
from credferry.agent.digests import sha256
from credferry.agent.errors import UnknownVmError
from credferry.launcher.handoff import (
    Channel,
    Delivery,
    Kind,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


class Policy(enum.StrEnum):
    """What a change of a VM's secrets does to the VM while it runs."""

    RESTART = "restart"
    HOLD = "hold"
    """It is sealed for the next start, and shown as due; somebody else restarts the VM."""
    APPROVE = "approve"
    """It is sealed, and the VM gets it once an operator has approved just this change."""
    IGNORE = "ignore"
    """It is sealed for the next start, and that is all."""


class OnLiveFailure(enum.StrEnum):
    """What the agent does where a push cannot bring a live VM its new values."""

    RESTART = "restart"
    HOLD = "hold"
    """The VM keeps what it has, and is shown as failed; somebody else restarts it or has it tried again."""


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When restarts are allowed: for so many minutes from each moment of a calendar event."""

    starts: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    """In systemd's calendar syntax (systemd.time(7)), such as ``Sat,Sun 02:00`` or ``*-*-* 03:00 UTC``."""
    minutes: Annotated[int, msgspec.Meta(ge=1, le=10_080)]


class RestartPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Said in ``[rollout]`` for all VMs, and in a VM's own table for that one."""

    policy: Policy = Policy.RESTART
    windows: tuple[Window, ...] = ()
    """Restarts happen within one of these only; none for at any time."""
    restarts_per_hour: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 0
    """At most so many restarts of the VM within any hour; 0 for no limit."""
    quiet_seconds: Seconds = 0.0
    """For how long nothing new must have been published for the VM before it is restarted."""
    quiet_max_seconds: Seconds = 600.0
    """After this long it is restarted though publications do not fall quiet."""
    on_live_failure: OnLiveFailure = OnLiveFailure.RESTART
    health: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    """A command that says, by its status, whether a VM that was restarted does its work."""
    units: Units = Units()


INHERITED = frozenset(field.name for field in msgspec.structs.fields(RestartPolicy))
"""Keys that a VM's table takes from ``[rollout]`` where it has not its own."""


def one_of(wrong: str, known: Any) -> str:  # noqa: ANN401 (any iterable of names)
    """What may have been meant by a wrong name, in words."""
    near = difflib.get_close_matches(wrong, list(known), n=1)
    return (
        near[0] if near else "one of " + ", ".join(sorted(known)) if known else "none, because none exists"
    )


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The three known names that are most like a wrong one, in words, the most likely first."""
    near = difflib.get_close_matches(wrong, [*known], n=3, cutoff=0.0)
    return " or ".join(filter(None, (", ".join(near[:-1]), *near[-1:]))) or "none, because none exists"


DEFAULT_PATH = Path("/etc/credferry/config.toml")
PATH_VARIABLE = "CREDFERRY_CONFIG"
"""The environment's variable that names another."""
HOST_KEY_FILE = "/var/lib/systemd/credential.secret"
MACHINE_ID_FILE = "/etc/machine-id"
"""Where systemd itself has them."""
MANUAL = "man credferry.toml"
"""Where an operator reads what each key takes."""


class RolloutConfig(RestartPolicy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How restarts are carried out; its `RestartPolicy` is that of VMs that do not say otherwise."""

    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2
    retry_seconds: Seconds = 5.0
    """Before the second attempt; doubled before each further one."""
    stamp_seconds: Seconds = 30.0
    """How long after the job's end the launcher may take to report that it has launched the VM."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """How many VMs are restarted at a time."""
    slot_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 120.0
    """A restart that takes longer than this no longer keeps others waiting for their turn."""
    canaries: tuple[str, ...] = ()
    """VMs that go first: others wait for them where the same change concerns both."""
    canary_seconds: Seconds = 0.0
    """How long canaries must have run on the change before others follow."""
    pause_seconds: Seconds = 0.0
    """How long after a VM's restart or push no other VM begins one."""
    live_windows: bool = True
    """Whether windows and rates hold for pushes as well."""
    switch_lock: AbsolutePath = "/run/nixos/switch-to-configuration.lock"
    """While somebody holds a lock on this file, a NixOS switch is in progress."""
    switch_seconds: Seconds = 900.0
    """How long a switch in progress is waited for."""


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the agent writes its metrics."""

    textfile: PromPath | None = None
    """Where metrics are written, for node-exporter's textfile collector, which takes ``*.prom`` only."""


class VmConfig(RestartPolicy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One VM. ``name`` and ``credentials`` are filled in from the file's tables."""

    name: str = ""
    unit: str = ""
    after: tuple[str, ...] = ()
    """VMs that are to be restarted before this one, where they are as well."""
    fleet_group: GroupName | None = None
    """The group of the fleet that it belongs to; None for that of ``[fleet]``."""
    channel: Channel = Channel.API
    guest_systemd: Annotated[int, msgspec.Meta(ge=250, le=9999)] = 252
    guest_key: bool = False
    guest_machine_id: MachineId | None = None
    """The guest's machine id. With it the host makes the key, and gives it to the guest at each start."""
    initrd: bool = False
    """Whether what is sealed for the guest travels in its initrd instead of OEM strings."""
    plaintext_in_argv: bool = False
    live: bool = False
    """Whether changes are pushed to the running guest: each generation has a manifest for the guest."""
    allow_names: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    """Credentials that rotate together: a certificate, and its private key."""
    credentials: dict[str, CredentialConfig] = msgspec.field(default_factory=dict)

    @property
    def secrets(self) -> dict[str, frozenset[str]]:
        """Names of the VM's secrets, by source. A source that it does not use is not there."""
        found: dict[str, set[str]] = {}
        for each in self.credentials.values():
            if each.secret is not None:
                found.setdefault(each.source, set()).add(each.secret)
        return {source: frozenset(names) for source, names in found.items()}

    @property
    def delivery(self) -> Delivery:
        """How the launcher hands the credentials to the VM."""
        return Delivery(
            self.channel, self.guest_systemd, self.plaintext_in_argv, self.allow_names, self.initrd
        )

    def unit_of(self, template: str) -> str:
        """The name of a unit of the operator for this VM."""
        return template.replace("%i", self.name)

    @property
    def may_seal(self) -> bool:
        """Whether any credential may leave the host in the form of `Kind.SEALED`."""
        return self.guest_key or any(each.seal for each in self.credentials.values())

    def kind(self, name: str) -> Kind:
        """In which form a credential leaves the host."""
        credential = self.credentials[name]
        if credential.seal if credential.seal is not None else self.guest_key and credential.text is None:
            return Kind.SEALED
        return Kind.PLAIN if credential.text is None else Kind.TEXT


class SealKey(enum.StrEnum):
    """What the values in the store are sealed with, in the words of ``systemd-creds --with-key=``."""

    HOST = "host"
    HOST_TPM2 = "host+tpm2"
    TPM2 = "tpm2"
    AUTO = "auto"
    """What systemd chooses on this host: with a TPM2, if it finds one, and else with the host's key."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """The whole configuration. ``file`` is where it came from, for messages."""

    file: Path = DEFAULT_PATH
    source: SourceConfig = SourceConfig()
    sources: dict[str, SourceConfig] = {}
    """Further sources, by name."""
    rollout: RolloutConfig = RolloutConfig()
    fleet: FleetConfig | None = None
    metrics: MetricsConfig = MetricsConfig()
    state_directory: AbsolutePath = "/var/lib/credferry"
    runtime_directory: AbsolutePath = "/run"
    seal_key: SealKey = SealKey.HOST
    tpm2_pcrs: Pcrs | None = None
    """PCRs of the TPM2 whose values must be those of the sealing; systemd's own default if left out."""
    tpm2_public_key: AbsolutePath | None = None
    """A public key for signed PCR values, as for ``systemd-creds --tpm2-public-key=``."""
    host_key: AbsolutePath = HOST_KEY_FILE
    machine_id_file: AbsolutePath = MACHINE_ID_FILE
    vms: dict[str, VmConfig] = {}

    @property
    def secrets(self) -> dict[str, frozenset[str]]:
        """Names of all secrets that any VM uses, by source. A source that no VM uses is not there."""
        found: dict[str, set[str]] = {}
        for vm in self.vms.values():
            for source, names in vm.secrets.items():
                found.setdefault(source, set()).update(names)
        return {source: frozenset(names) for source, names in found.items()}

    def source_of(self, name: str) -> SourceConfig:
        """The source of this name; the default one if it is empty."""
        return self.sources[name] if name else self.source

    @property
    def resync_seconds(self) -> float:
        """How often the sources in use are read without a hint: as often as any of them asks for."""
        return min(
            (self.source_of(name).resync_seconds for name in self.secrets),
            default=self.source.resync_seconds,
        )

    @cached_property  # of 1,000 VMs it takes 0.1 s, and the group may ask for it over the bus
    def id(self) -> str:
        """16 hex digits that differ once anything here does."""
        return sha256(repr(self).encode()).hex()[:16]

    def vm(self, name: str) -> VmConfig:
        """The VM of a name. Raises `UnknownVmError` for one that is not configured."""
        try:
            return self.vms[name]
        except KeyError:
            raise UnknownVmError(
                f"{self.file}: there is no VM {name!r}",
                hint=f"use {nearest(name, self.vms)}; or add a table [vms.{name}]",
            ) from None
