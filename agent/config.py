# SPDX-License-Identifier: MIT
"""The configuration file: TOML into frozen, validated records; every error names file, key and remedy."""

from __future__ import annotations

import hashlib
import os
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from agent.calendar import check_windows
from agent.config_checks import check_order, check_vm, one_of
from agent.errors import ConfigurationError
from agent.policy import INHERITED, RestartPolicy, Seconds
from launcher.handoff import Channel, Delivery, Kind, is_vm_name

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH = Path("/etc/credferry/config.toml")
PATH_VARIABLE = "CREDFERRY_CONFIG"
"""The environment's variable that names another."""
_SIZE_MAX = 1 << 20
"""Bytes of a configuration file; ten thousand credentials stay below it."""

AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*\Z")]


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where secrets are published, and how changes there are taken for settled."""

    path: AbsolutePath = "/run/secrets"
    follow_links: bool = False
    """Whether a symlink in the source may lead out of it."""
    quiet_seconds: Seconds = 1.0
    """How long a file written in place must have stayed the same; a symlink's swap needs no settling."""
    quiet_max_seconds: Seconds = 10.0
    """After this long an unquiet source is read as it is."""
    resync_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 60.0
    """Every so often the source is looked at without a hint, for what inotify cannot see."""


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
    switch_lock: AbsolutePath = "/run/nixos/switch-to-configuration.lock"
    """While somebody holds a lock on this file, a NixOS switch is in progress."""
    switch_seconds: Seconds = 900.0
    """How long a switch in progress is waited for."""


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What monitoring is told."""

    textfile: Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*\.prom\Z")] | None = None
    """Where metrics are written, for node-exporter's textfile collector, which takes ``*.prom`` only."""


class CredentialConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One credential of a VM: a secret of the source, or a text that is none."""

    secret: str | None = None
    text: str | None = None
    required: bool = True
    seal: bool | None = None
    """Whether it is sealed for the guest; by default every secret of a VM with ``guest_key`` is."""


class VmConfig(RestartPolicy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One VM. ``name`` and ``credentials`` are filled in from the file's tables."""

    name: str = ""
    unit: str = ""
    after: tuple[str, ...] = ()
    """VMs that are to be restarted before this one, where they are as well."""
    channel: Channel = Channel.API
    guest_systemd: Annotated[int, msgspec.Meta(ge=250, le=9999)] = 252
    guest_key: bool = False
    initrd: bool = False
    """Whether what is sealed for the guest travels in its initrd instead of OEM strings."""
    plaintext_in_argv: bool = False
    allow_names: tuple[str, ...] = ()
    credentials: dict[str, CredentialConfig] = msgspec.field(default_factory=dict)

    @property
    def delivery(self) -> Delivery:
        """What the launcher is told."""
        return Delivery(
            self.channel, self.guest_systemd, self.plaintext_in_argv, self.allow_names, self.initrd
        )

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


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration. ``file`` is where it came from, for messages."""

    file: Path = DEFAULT_PATH
    source: SourceConfig = SourceConfig()
    rollout: RolloutConfig = RolloutConfig()
    metrics: MetricsConfig = MetricsConfig()
    state_directory: AbsolutePath = "/var/lib/credferry"
    runtime_directory: AbsolutePath = "/run"
    host_key: AbsolutePath = "/var/lib/systemd/credential.secret"
    machine_id_file: AbsolutePath = "/etc/machine-id"
    vms: dict[str, VmConfig] = {}

    @property
    def secrets(self) -> frozenset[str]:
        """Names, in the source, of all secrets that any VM uses."""
        return frozenset(
            credential.secret
            for vm in self.vms.values()
            for credential in vm.credentials.values()
            if credential.secret is not None
        )

    @property
    def id(self) -> str:
        """16 hex digits that differ once anything here does."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def vm(self, name: str) -> VmConfig:
        """The VM of a name. Raises `ConfigurationError` for one that is not configured."""
        try:
            return self.vms[name]
        except KeyError:
            raise ConfigurationError(
                f"{self.file}: there is no VM {name!r}",
                hint=f"add a table [vms.{name}], or use {one_of(name, self.vms)}",
            ) from None


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises `ConfigurationError`, whose text names the file, the key and what is expected there.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {os.strerror(error.errno or 0)}",
            hint="write it, or name another with --config",
        ) from None
    if len(content) > _SIZE_MAX:
        raise ConfigurationError(
            f"{path}: over {_SIZE_MAX} bytes", hint="it should hold no values of secrets"
        )
    config = parse(content, path)
    check_windows(config)
    return config


def parse(content: bytes, path: Path) -> Config:
    """Check the content of a configuration file; ``path`` is for messages. Raises `ConfigurationError`."""
    try:
        table = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8", hint="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        # tomllib quotes at most one character of the file. A number of thousands of digits is no
        # TOMLDecodeError but int()'s own ValueError.
        raise ConfigurationError(
            f"{path}: not TOML: {error}", hint="see https://toml.io/en/v1.0.0"
        ) from None
    if "file" in table:
        raise ConfigurationError(f"{path}: unknown key 'file'", hint="remove it")
    vms, said = table.pop("vms", {}), table.get("rollout", {})
    source = _convert(table.pop("source", {}), SourceConfig, path, "source")
    rollout = _convert(table.pop("rollout", {}), RolloutConfig, path, "rollout")
    metrics = _convert(table.pop("metrics", {}), MetricsConfig, path, "metrics")
    config = _convert(table, Config, path, "")
    if not isinstance(vms, dict):
        raise ConfigurationError(f"{path}: vms: expected a table", hint="write [vms.NAME] for each VM")
    defaults = {key: said[key] for key in INHERITED & said.keys()}
    checked = {name: _vm(name, vm, defaults, path) for name, vm in vms.items()}
    units: dict[str, str] = {}
    for vm in checked.values():
        if vm.unit in units:
            raise ConfigurationError(
                f"{path}: vms.{vm.name}.unit: {vm.unit} is the unit of VM {units[vm.unit]!r} already",
                hint="give each VM a unit of its own",
            )
        units[vm.unit] = vm.name
    check_order(checked, rollout.canaries, path)
    return msgspec.structs.replace(
        config, file=path, source=source, rollout=rollout, metrics=metrics, vms=checked
    )


def restart_order(vms: Mapping[str, VmConfig]) -> list[str]:
    """All VMs, each after those that it is to be restarted after. Raises `graphlib.CycleError`."""
    return list(TopologicalSorter({name: vm.after for name, vm in vms.items()}).static_order())


def _vm(name: str, table: object, defaults: Mapping[str, object], path: Path) -> VmConfig:
    key = f"vms.{name}"
    if not is_vm_name(name):
        raise ConfigurationError(
            f"{path}: {key}: not a VM name",
            hint="use up to 64 of A-Z a-z 0-9 _ . -, beginning with a letter, digit or _",
        )
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: {key}: expected a table", hint=f"write [{key}]")
    credentials = table.pop("credentials", {})
    if "name" in table:
        raise ConfigurationError(f"{path}: {key}: unknown key 'name'", hint="remove it")
    if not isinstance(credentials, dict) or not credentials:
        raise ConfigurationError(
            f"{path}: {key}.credentials: expected a table with at least one credential",
            hint=f'write [{key}.credentials] and below it: API_KEY = {{ secret = "api-key" }}',
        )
    vm = _convert({**defaults, **table}, VmConfig, path, key)
    vm = msgspec.structs.replace(
        vm,
        name=name,
        unit=vm.unit or f"microvm@{name}.service",
        credentials={
            each: _convert(value, CredentialConfig, path, f"{key}.credentials.{each}")
            for each, value in credentials.items()
        },
    )
    check_vm(vm, path)
    return vm


_T = TypeVar("_T", bound=msgspec.Struct)


def _convert(table: object, kind: type[_T], path: Path, key: str) -> _T:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        where, expectation = _explain(str(error), key)
        raise ConfigurationError(
            f"{path}: {where}{expectation}", hint=_remedy(expectation, kind, table)
        ) from None


def _explain(message: str, key: str) -> tuple[str, str]:
    """Split msgspec's ``expectation - at `$.a.b` `` into our dotted key and the expectation."""
    expectation, _, at = message.partition(" - at `$")
    inner = at.rstrip("`").lstrip(".")
    where = ".".join(part for part in (key, inner) if part)
    return (f"{where}: " if where else ""), expectation[:1].lower() + expectation[1:]


def _remedy(expectation: str, kind: type[msgspec.Struct], table: object) -> str:
    if "unknown field" in expectation and isinstance(table, dict):
        known = {field.name for field in msgspec.structs.fields(kind)} - {"file", "name"}
        wrong = next((name for name in table if name not in known), "")
        return f"remove it, or did you mean {one_of(wrong, known)}?"
    return "see docs/configuration.md"
