# SPDX-License-Identifier: MIT
"""Reads the TOML configuration file into frozen, checked records. Errors name file, key and remedy."""

from __future__ import annotations

import enum
import os
import tomllib
from typing import TYPE_CHECKING, TypeVar, get_args, get_type_hints

import msgspec

from credferry.agent.config.calendar import check_windows
from credferry.agent.config.checks import check_order, check_seal_key, check_sources, check_vm
from credferry.agent.config.fleet import FleetConfig, check_fleet
from credferry.agent.config.model import (
    INHERITED,
    MANUAL,
    Config,
    MetricsConfig,
    RolloutConfig,
    VmConfig,
    one_of,
)
from credferry.agent.config.secrets import CredentialConfig, SourceConfig, source_key
from credferry.agent.config.values import PATTERNS
from credferry.agent.errors import ConfigurationError
from credferry.launcher.handoff import is_vm_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SIZE_MAX = 1 << 20
"""Limit for a configuration file, in bytes. Ten thousand credentials stay below it."""


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises `ConfigurationError`. Its text names the file, the key and what is expected there.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {os.strerror(error.errno or 0)}",
            hint="write the file, or name another with --config",
        ) from None
    if len(content) > _SIZE_MAX:
        raise ConfigurationError(
            f"{path}: larger than {_SIZE_MAX} bytes",
            hint="the configuration must not contain values of secrets",
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
        # tomllib quotes at most one character of the file. A number of thousands of digits raises no
        # TOMLDecodeError, but int()'s own ValueError.
        raise ConfigurationError(
            f"{path}: not TOML: {error}", hint="see https://toml.io/en/v1.0.0"
        ) from None
    if "file" in table:
        raise ConfigurationError(f"{path}: unknown key 'file'", hint="remove it")
    vms, said = table.pop("vms", {}), table.get("rollout", {})
    source = _convert(table.pop("source", {}), SourceConfig, path, "source")
    sources = _sources(table.pop("sources", {}), path)
    rollout = _convert(table.pop("rollout", {}), RolloutConfig, path, "rollout")
    metrics = _convert(table.pop("metrics", {}), MetricsConfig, path, "metrics")
    fleet = _convert(table.pop("fleet"), FleetConfig, path, "fleet") if "fleet" in table else None
    config = _convert(table, Config, path, "")
    check_seal_key(config, path)
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
        check_sources(vm, sources, path)
    for vm in checked.values():
        for each in vm.units.templates:
            if (name := vm.unit_of(each)) in units:
                raise ConfigurationError(
                    f"{path}: vms.{vm.name}.units: {name} is the unit of VM {units[name]!r}",
                    hint="name a unit of your own, which belongs neither to credferry nor to a VM",
                )
    check_order(checked, rollout.canaries, path)
    check_fleet(fleet, checked.values(), path)
    return msgspec.structs.replace(
        config,
        file=path,
        source=source,
        sources=sources,
        rollout=rollout,
        fleet=fleet,
        metrics=metrics,
        vms=checked,
    )


def _sources(tables: object, path: Path) -> dict[str, SourceConfig]:
    if not isinstance(tables, dict):
        raise ConfigurationError(f"{path}: sources: expected a table", hint="write [sources.NAME] for each")
    for name, table in tables.items():
        key = source_key(name)
        if not is_vm_name(name):
            raise ConfigurationError(
                f"{path}: {key}: not a source name",
                hint="use 1 to 64 characters of A-Z a-z 0-9 _ . -, and begin with a letter, digit or _",
            )
        if isinstance(table, dict) and "path" not in table:
            raise ConfigurationError(
                f"{path}: {key}.path: is missing",
                hint="write where it is, such as /var/lib/acme/example.org",
            )
    return {name: _convert(table, SourceConfig, path, source_key(name)) for name, table in tables.items()}


def _vm(name: str, table: object, defaults: Mapping[str, object], path: Path) -> VmConfig:
    key = f"vms.{name}"
    if not is_vm_name(name):
        raise ConfigurationError(
            f"{path}: {key}: not a VM name",
            hint="use 1 to 64 characters of A-Z a-z 0-9 _ . -, and begin with a letter, digit or _",
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
    """Split msgspec's ``expectation - at `$.a.b` `` into a dotted key and the expectation."""
    expectation, _, at = message.partition(" - at `$")
    for pattern, words in PATTERNS.items():
        if f"matching regex {pattern!r}" in expectation:
            expectation = words
    expectation = expectation.replace("Invalid enum value", "Unknown value")
    inner = at.rstrip("`").lstrip(".")
    where = ".".join(part for part in (key, inner) if part)
    return (f"{where}: " if where else ""), expectation[:1].lower() + expectation[1:]


def _remedy(expectation: str, kind: type[msgspec.Struct], table: object) -> str:
    if "unknown field" in expectation and isinstance(table, dict):
        known = {field.name for field in msgspec.structs.fields(kind)} - {"file", "name"}
        wrong = next((name for name in table if name not in known), "")
        return f"remove it; or did you mean {one_of(wrong, known)}?"
    if "unknown value" in expectation and isinstance(table, dict):
        for name, value in table.items():
            choices = _choices(kind, name)
            if choices and value not in choices:
                return f"use one of {', '.join(choices)}"
    return f"see: {MANUAL}"


def _choices(kind: type[msgspec.Struct], key: str) -> tuple[str, ...]:
    """The values that a key can have, if they are a few words."""
    wanted = get_type_hints(kind).get(key)
    for each in (wanted, *get_args(wanted)):  # a choice that may be left out is a union with None
        if isinstance(each, type) and issubclass(each, enum.Enum):
            return tuple(str(choice.value) for choice in each)
    return ()
