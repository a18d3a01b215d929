# SPDX-License-Identifier: MIT
"""Checks that types cannot express: names, order, and settings that exclude or need each other."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from credferry.agent.config.model import MACHINE_ID_FILE, SealKey, one_of
from credferry.agent.config.secrets import Format, field_parts
from credferry.agent.errors import ConfigurationError
from credferry.launcher.handoff import (
    NAME_MAX,
    PUSH_MANIFEST,
    PUSHED_MAX,
    Channel,
    Kind,
    is_credential_name,
    is_powerful_name,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.config.secrets import CredentialConfig

_SERVICE_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?\.service")
"""A template without an instance does not match (systemd.unit(5))."""
_UNIT_NAME_MAX = 255
"""Bytes: UNIT_NAME_MAX."""


def check_vm(vm: VmConfig, path: Path) -> None:
    """Raise `ConfigurationError` for a VM whose settings are not valid."""
    key = f"vms.{vm.name}"
    # systemd refuses a call with an invalid name. One such VM would end each check of all VMs.
    if not _SERVICE_NAME.fullmatch(vm.unit) or len(vm.unit) > _UNIT_NAME_MAX:
        raise ConfigurationError(
            f"{path}: {key}.unit: not the name of a service",
            hint="write the full name, such as microvm@web.service",
        )
    if vm.channel is Channel.DIRECTORY:
        _check_directory(vm, path, key)
    if vm.initrd and not vm.guest_key:
        raise ConfigurationError(
            f"{path}: {key}.initrd: the initrd carries only credentials that are sealed for the guest",
            hint=f"set guest_key = true in [{key}], and run: credferry guest-key create {vm.name}",
        )
    if vm.guest_machine_id is not None and not vm.guest_key:
        raise ConfigurationError(
            f"{path}: {key}.guest_machine_id: a key is made only where values are sealed for the guest",
            hint=f"set guest_key = true in [{key}], or leave out guest_machine_id",
        )
    if vm.live:
        _check_live(vm, path, key)
    for pair in vm.pairs:
        _check_pair(vm, pair, path, f"{key}.pairs")
    _check_units(vm, path, key)
    for each in vm.allow_names:
        _check_name(each, path, f"{key}.allow_names")
    for each in vm.credentials:
        _check_credential(vm, each, path, f"{key}.credentials.{each}")


def _check_pair(vm: VmConfig, pair: tuple[str, str], path: Path, key: str) -> None:
    for each in pair:
        if each not in vm.credentials:
            raise ConfigurationError(
                f"{path}: {key}: there is no credential {each!r}", hint=f"use {one_of(each, vm.credentials)}"
            )
    if pair[0] == pair[1]:
        raise ConfigurationError(
            f"{path}: {key}: {pair[0]!r} is paired with itself",
            hint='write the names of a certificate and its key, as ["TLS_CERT", "TLS_KEY"]',
        )


def _check_directory(vm: VmConfig, path: Path, key: str) -> None:
    """Refuse what only a launcher could do."""
    for name, is_set in (
        ("live", vm.live),
        ("initrd", vm.initrd),
        ("plaintext_in_argv", vm.plaintext_in_argv),
    ):
        if is_set:
            raise ConfigurationError(
                f'{path}: {key}.{name}: channel = "directory" has no launcher that could do this',
                hint=f"leave out {name}",
            )


def _check_units(vm: VmConfig, path: Path, key: str) -> None:
    for each in vm.units.templates:
        name = vm.unit_of(each)
        if name == vm.unit or name.startswith(("credferry", "microvm")) or len(name) > _UNIT_NAME_MAX:
            raise ConfigurationError(
                f"{path}: {key}.units: {name}: not a unit that the agent may start around a restart",
                hint="name a unit of your own, which belongs neither to credferry nor to a VM",
            )


def _check_live(vm: VmConfig, path: Path, key: str) -> None:
    if vm.initrd:
        raise ConfigurationError(
            f"{path}: {key}.live: a push cannot change what travels in the guest's initrd",
            hint="leave out initrd or live",
        )
    if vm.channel is Channel.COMMAND and not vm.guest_key and not vm.plaintext_in_argv:
        raise ConfigurationError(
            f'{path}: {key}.live: channel = "command" would show the guest\'s manifest in /proc/PID/cmdline',
            hint='channel = "api", or guest_key = true, or plaintext_in_argv = true to allow it',
        )
    if len(vm.credentials) > PUSHED_MAX:
        raise ConfigurationError(
            f"{path}: {key}.live: a push takes at most {PUSHED_MAX} credentials",
            hint="pass fewer, or leave out live",
        )


def check_seal_key(config: Config, path: Path) -> None:
    """Raise `ConfigurationError` for settings of a TPM2 that have no effect, or do harm."""
    if config.seal_key is SealKey.HOST:
        for name in ("tpm2_pcrs", "tpm2_public_key"):
            if getattr(config, name) is not None:
                raise ConfigurationError(
                    f'{path}: {name}: seal_key = "host" uses no TPM2',
                    hint=f'leave out {name}, or set seal_key = "host+tpm2"',
                )
    elif config.machine_id_file != MACHINE_ID_FILE:
        # systemd-creds deletes a key that was made for another machine id than that of /etc/machine-id.
        raise ConfigurationError(
            f"{path}: machine_id_file: systemd seals with a TPM2, and reads {MACHINE_ID_FILE} only",
            hint='leave out machine_id_file, or set seal_key = "host"',
        )


def check_sources(vm: VmConfig, sources: Collection[str], path: Path) -> None:
    """Raise `ConfigurationError` for a credential that names a source that does not exist."""
    for name, credential in vm.credentials.items():
        if credential.source and credential.source not in sources:
            raise ConfigurationError(
                f"{path}: vms.{vm.name}.credentials.{name}.source: there is no source {credential.source!r}",
                hint=f"use {one_of(credential.source, sources)}; "
                f"or add a table [sources.{credential.source}]",
            )


def check_order(vms: Mapping[str, VmConfig], canaries: Iterable[str], path: Path) -> None:
    """Raise `ConfigurationError` for an unknown VM in ``canaries`` or ``after``, or a cycle in ``after``."""
    for canary in canaries:
        if canary not in vms:
            raise ConfigurationError(
                f"{path}: rollout.canaries: there is no VM {canary!r}", hint=f"use {one_of(canary, vms)}"
            )
    for vm in vms.values():
        for other in vm.after:
            if other not in vms:
                raise ConfigurationError(
                    f"{path}: vms.{vm.name}.after: there is no VM {other!r}",
                    hint=f"use {one_of(other, vms)}",
                )
    try:
        TopologicalSorter({name: vm.after for name, vm in vms.items()}).prepare()
    except CycleError as error:
        raise ConfigurationError(
            f"{path}: vms.{error.args[1][0]}.after: `after` has a cycle: {' → '.join(error.args[1])}",
            hint="remove one of them",
        ) from None


def _check_credential(vm: VmConfig, name: str, path: Path, key: str) -> None:
    credential = vm.credentials[name]
    _check_name(name, path, key)
    if name == PUSH_MANIFEST:
        raise ConfigurationError(
            f"{path}: {key}: the agent itself uses this name, for VMs with live = true",
            hint="use another name",
        )
    if is_powerful_name(name) and name not in vm.allow_names:
        raise ConfigurationError(
            f"{path}: {key}: a credential of this name gives power over the guest",
            hint=f'if you want this: allow_names = ["{name}"] in [vms.{vm.name}]',
        )
    if (credential.secret is None) == (credential.text is None):
        raise ConfigurationError(
            f"{path}: {key}: expected either secret or text",
            hint='write secret = "name in the source", or text = "not secret"',
        )
    for wrong in ("source", "field", "format", "trim", "max_age_days"):
        if credential.secret is None and getattr(credential, wrong):
            raise ConfigurationError(
                f"{path}: {key}.{wrong}: only a secret has it", hint=f"leave out {wrong}, or name a secret"
            )
    _check_field(credential, path, key)
    if credential.secret is not None and not is_secret_name(credential.secret):
        raise ConfigurationError(
            f"{path}: {key}.secret: {credential.secret!r} leads out of the source, or is not a name in it",
            hint="use a relative path without '.' and '..', such as db/password",
        )
    if credential.text == "":
        raise ConfigurationError(f"{path}: {key}.text: is empty", hint="give it a text, or remove it")
    kind = vm.kind(name)
    if kind is Kind.SEALED and not vm.guest_key:
        raise ConfigurationError(
            f"{path}: {key}.seal: VM {vm.name!r} has no guest key",
            hint=f"set guest_key = true in [vms.{vm.name}], and run: credferry guest-key create {vm.name}",
        )
    if kind is Kind.PLAIN and vm.channel is Channel.COMMAND and not vm.plaintext_in_argv:
        raise ConfigurationError(
            f'{path}: {key}: channel = "command" would show the value in /proc/PID/cmdline',
            hint='set channel = "api" or guest_key = true; to allow it anyway, plaintext_in_argv = true',
        )


def _check_field(credential: CredentialConfig, path: Path, key: str) -> None:
    form = credential.form
    if credential.field is None:
        if credential.format is not None:
            raise ConfigurationError(
                f"{path}: {key}.format: there is no field to take", hint="leave out format, or name a field"
            )
    elif form is None:
        raise ConfigurationError(
            f"{path}: {key}.field: what {credential.secret!r} is written in is not known",
            hint=f"write format = {', or '.join(repr(each.value) for each in Format)}",
        )
    elif not all(field_parts(credential.field, form)):
        raise ConfigurationError(
            f"{path}: {key}.field: {credential.field!r} has an empty part",
            hint="write db.password; a dot that belongs to a key is written \\.",
        )


def _check_name(name: str, path: Path, key: str) -> None:
    if not is_credential_name(name):
        raise ConfigurationError(
            f"{path}: {key}: not a credential name",
            hint=f"use 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ -",
        )


def is_secret_name(name: str) -> bool:
    """Whether a name is a path within the source: relative, and without ``.`` and ``..``."""
    return "\0" not in name and all(part not in {"", ".", ".."} for part in name.split("/"))
