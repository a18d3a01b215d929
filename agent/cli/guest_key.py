# SPDX-License-Identifier: MIT
"""``credferry guest-key``: keys that guests' systemd opens their credentials with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from credferry.agent.cli.common import DEFAULT_CONFIG, ConfigOption
from credferry.agent.cli.owner import as_owner_of
from credferry.agent.cli.terminal import say
from credferry.agent.config.loading import load
from credferry.agent.config.model import VmConfig
from credferry.agent.errors import KeyFileError, UsageError
from credferry.agent.sealing.keys import KEY_MODE, KEY_SIZE_MAX, create_key, hashed_machine_id, read_key
from credferry.agent.store import guest_keys
from credferry.agent.store.opening import guest_key_path, open_store_untouched
from credferry.agent.untrusted import read_untrusted


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verbs = typer.Typer(help="Keys with which systemd in a guest opens credentials.", no_args_is_help=True)
    app.add_typer(verbs, name="guest-key")

    @verbs.command("create")
    def create(
        vm: Annotated[str, typer.Argument(help="The VM's name in the configuration.")],
        machine_id: Annotated[
            str, typer.Option("--machine-id", help="The guest's machine id.", metavar="ID")
        ],
        output: Annotated[
            Path | None,
            typer.Option("--output", help="Also write the guest's copy to this file.", metavar="FILE"),
        ] = None,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Make a guest's key by hand. The guest needs it as /var/lib/systemd/credential.secret, mode 0400.

        Not needed with guest_machine_id in the VM's table: then the host makes the key, and hands it over.
        """
        loaded = load(config)
        path = guest_key_path(loaded, loaded.vm(vm).name)
        hashed_machine_id(machine_id)  # before anything is made
        if output is not None and output.exists():
            raise KeyFileError(
                f"{output}: exists already", hint="remove it first: credferry does not overwrite a key"
            )
        try:
            with as_owner_of(Path(loaded.state_directory)):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                create_key(path, machine_id=machine_id)
                read_key(path, machine_id=machine_id)
                # In a directory of the agent's user: it must not lead root to a file of root's.
                content = read_untrusted(path, limit=KEY_SIZE_MAX, below=Path(loaded.state_directory))
        except FileExistsError:
            raise KeyFileError(
                f"{path}: VM {vm!r} has a key already",
                hint="copy this file to the guest; or move it away first, to make a new key",
            ) from None
        except OSError as error:
            raise KeyFileError(f"{path.parent}: {error.strerror}", hint="run as root") from None
        if output is not None:
            _write(content, output)
        say(f"{path}: made for machine {machine_id}")

    @verbs.command("rotate")
    def rotate(
        vm: Annotated[str, typer.Argument(help="The VM's name in the configuration.")],
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Replace the key that a guest gets from the host, and seal for the guest again.

        The agent then restarts the VM, as it does after a change of its secrets. The previous key is kept
        for a rollback.
        """
        loaded = load(config)
        table = loaded.vm(vm)
        machine_id = _machine_id(table)
        store = open_store_untouched(loaded)
        manifest = store.current(table.name)
        sealed = None if manifest is None else (manifest, store.values(table.name))
        with as_owner_of(Path(loaded.state_directory)):
            guest_keys.rotate(loaded, table, machine_id, sealed)
        say(f"{guest_key_path(loaded, table.name)}: replaced by a new key")
        from credferry.agent.cli.sync import sync_now  # noqa: PLC0415 (not needed when a VM starts)

        sync_now(loaded, [table])

    @verbs.command("hand-over", hidden=True)
    def hand_over(
        vm: Annotated[str, typer.Argument(help="The VM's name in the configuration.")],
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        """Give a guest its key. The VM's unit calls this when the VM starts."""
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            raise UsageError("only the VM's unit can hand over a guest's key", hint="start the VM's unit")
        loaded = load(config)
        table = loaded.vm(vm)
        machine_id = _machine_id(table)
        manifest, values = guest_keys.starting(Path(directory))
        with as_owner_of(Path(loaded.state_directory)):
            key = guest_keys.key_that_opens(loaded, table, manifest, values)
        guest_keys.give(loaded, table, key, machine_id)


def _machine_id(vm: VmConfig) -> str:
    if vm.guest_machine_id is None:
        raise KeyFileError(
            f"VM {vm.name!r} has no guest_machine_id, so its guest does not get its key from the host",
            hint=f"set guest_machine_id in [vms.{vm.name}]; or move the key away, and make a new one",
        )
    return vm.guest_machine_id


def _write(content: bytes, output: Path) -> None:
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, KEY_MODE)
        with os.fdopen(descriptor, "wb") as target:
            target.write(content)
            os.fchmod(descriptor, KEY_MODE)
            target.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise KeyFileError(f"{output}: {error.strerror}", hint="name another file with --output") from None
