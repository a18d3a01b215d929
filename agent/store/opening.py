# SPDX-License-Identifier: MIT
"""Opens the store of a configuration, with the host's key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.agent.config.model import HOST_KEY_FILE, SealKey
from credferry.agent.errors import StoreError
from credferry.agent.sealing.keys import CredentialKey, host_key, read_host_key, read_machine_id
from credferry.agent.sealing.systemd_creds import Options, SystemdCreds
from credferry.agent.store import form
from credferry.agent.store.at_rest import AtRest
from credferry.agent.store.generations import Store

if TYPE_CHECKING:
    from credferry.agent.config.model import Config


def open_store(config: Config) -> Store:
    """The store of a configuration, to write into. Makes the host's key where there is none.

    Root does not write into a directory of another user, who could have put links there. Raises
    `KeyFileError`, `StoreFormError` and `StoreError`.
    """
    _require_own(Path(config.state_directory))
    key = host_key(Path(config.host_key), machine_id_file=Path(config.machine_id_file))
    form.check(Path(config.state_directory))
    return Store(Path(config.state_directory), key, at_rest=_at_rest(config))


def _at_rest(config: Config) -> AtRest:
    """How values are sealed. systemd finds the host's key itself, except where it is elsewhere."""
    program = SystemdCreds("" if config.host_key == HOST_KEY_FILE else config.host_key)
    options = None
    if config.seal_key is not SealKey.HOST:
        options = Options(config.seal_key.value, config.tpm2_pcrs, config.tpm2_public_key or "")
    return AtRest(Path(config.state_directory), options, program)


def _require_own(directory: Path) -> None:
    try:
        owner = directory.stat().st_uid
    except OSError:
        return  # the first write makes it, or says why not
    if os.geteuid() == 0 and owner != 0:
        raise StoreError(
            f"{directory}: belongs to user {owner}, and this process is root",
            hint="start credferry.service or credferry-seal.service, which run as that user",
        )


def open_store_untouched(config: Config) -> Store:
    """The store of a configuration, for verbs that change nothing. Raises as `open_store` does.

    Without a host key, nothing in the store can have been sealed. So a temporary random key is enough.
    """
    try:
        key = present_key(config)
    except FileNotFoundError:
        key = CredentialKey(os.urandom(32))
    form.check(Path(config.state_directory))
    return Store(Path(config.state_directory), key, at_rest=_at_rest(config))


def present_key(config: Config) -> CredentialKey:
    """The present host key. Raises `KeyFileError`, and `FileNotFoundError` where there is none."""
    machine_id = read_machine_id(Path(config.machine_id_file))
    return read_host_key(Path(config.host_key), machine_id=machine_id)


def guest_key_path(config: Config, vm: str) -> Path:
    """The path of the master copy of a guest's key."""
    return Path(config.state_directory) / "guest-keys" / f"{vm}.secret"
