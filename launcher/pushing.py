# SPDX-License-Identifier: MIT
"""``--push``: sends the unit's generation to the running guest of its VM, and reports what became of it."""

from __future__ import annotations

import binascii
import os
import sys

from credferry.launcher import arguments, credentials, hardening
from credferry.launcher.errors import Exit, LaunchError, usage
from credferry.launcher.handoff import (
    PUSH_MANIFEST,
    Kind,
    Secret,
    is_vm_name,
    push_receipt,
)
from credferry.launcher.push import peer, vsock
from credferry.launcher.push.protocol import (
    Conversation,
    GuestRefusedError,
    Hello,
    Item,
    NoReceiverError,
    PushError,
)
from credferry.launcher.record import FrozenRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from socket import socket
    from typing import Final

    from credferry.launcher.credentials import Credential, Delivered

_VALUES: Final = frozenset({"--vm", "--unit"})
_NEEDED: Final = "system-directory"
_CONNECT_SECONDS: Final = 2.0
_RESTART: Final = "the guest keeps what it has; restart the VM to bring it the new values"

_REFUSED: Final[Mapping[str, tuple[str, str, Exit]]] = {
    "busy": ("it handles another push", "push again when that has ended", Exit.LATER),
    "no-manifest": (
        "it was booted without a manifest",
        "restart the VM once; later pushes then work",
        Exit.GUEST,
    ),
    "older": ("it holds a newer generation, and takes no older one", _RESTART, Exit.GUEST),
    "other": ("it holds another generation of the same number", _RESTART, Exit.GUEST),
    "other-vm": (
        "it belongs to another VM",
        "see which VM's socket this is; nothing has changed in the guest",
        Exit.GUEST,
    ),
    "not-sealed": (
        "it takes only what is sealed with its own key",
        "say guest_key = true for the VM, or restart the VM",
        Exit.GUEST,
    ),
    "key": (
        "it cannot open what was sealed for it",
        "its key differs from the host's copy: see credferry doctor",
        Exit.GUEST,
    ),
    "null-key": ("a value is sealed with the null key, which proves nothing", _RESTART, Exit.GUEST),
    "manifest": ("the push and its manifest do not agree", _RESTART, Exit.GUEST),
    "digest": ("a value is not the one in the manifest", _RESTART, Exit.GUEST),
    "too-much": ("the credentials are over a limit of the guest", "pass fewer or smaller ones", Exit.GUEST),
    "not-writable": ("its systemd's credential directory cannot be written", _RESTART, Exit.UNKNOWN),
    "unit": (
        "a unit in the guest failed with the new values, and the old ones are back",
        "see the unit's journal in the guest; the next start of the VM has the new values",
        Exit.UNDONE,
    ),
    "slow": ("the push did not arrive in time", "push again when the host is less busy", Exit.GUEST),
    "protocol": (
        "it does not understand this host",
        "install the same release of credferry on both",
        Exit.GUEST,
    ),
    "internal": (
        "its receiver failed",
        "see journalctl -u 'credferry-receive@*' in the guest",
        Exit.UNKNOWN,
    ),
}
"""The guest's reasons: what happened there, what to do, and what the guest holds once it has the push.

`Exit.GUEST` stands for a refusal before the guest changes anything.
"""


class Push(FrozenRecord):
    """A push that is asked for: of the generation in ``directory``, to a VM and its unit.

    ``run`` is the system's runtime directory. ``check`` refuses a listener that is not the VM's.
    """

    vm: str
    unit: str
    directory: str
    run: str = "/run"
    check: Callable[[socket, str], None] = peer.check


def answer(words: Sequence[str]) -> int:
    """Do what the words after ``--push`` ask. Returns the exit status; prints one line."""
    try:
        said = push(_parse(words))
    except LaunchError as error:
        sys.stderr.write(f"credferry-launch: {error.args[0]}: {error.hint}\n")
        return int(error.status)
    sys.stdout.write(f"{said}\n")
    return 0


def push(asked: Push) -> str:
    """Push the generation; returns a line that says what changed. Raises `LaunchError`."""
    hardening.forbid_core_dumps()
    hardening.hide()
    delivered = credentials.read(asked.directory)
    manifest = delivered.manifest
    if manifest.vm != asked.vm:
        raise LaunchError(
            f"the credentials are those of VM {manifest.vm}, not of {asked.vm}",
            hint="correct --vm, or the unit's LoadCredentialEncrypted=",
            status=Exit.CREDENTIALS,
        )
    head, items = _blocks(delivered)
    with vsock.connect(vsock.noted(asked.vm, asked.run), asked.vm, _CONNECT_SECONDS) as connection:
        asked.check(connection, asked.unit)
        is_sent = False
        try:
            conversation = Conversation(connection)
            _check_hello(conversation.open(), delivered)
            is_sent = True
            done = conversation.deliver(head, items)
        except PushError as error:
            raise _failure(asked.vm, error, is_sent=is_sent) from None
    if done.receipt != push_receipt(manifest):
        raise LaunchError(
            f"VM {asked.vm} answered with a receipt that is not that of generation {manifest.generation}",
            hint="something else than its guest answered, so nothing is proved; see what listens there, "
            "and restart the VM",
            status=Exit.UNKNOWN,
        )
    units = ", ".join(f"{name} {action}" for name, action in done.units) or "no unit was affected"
    return f"VM {asked.vm} holds generation {manifest.generation} now: {units}"


def _parse(words: Sequence[str]) -> Push:
    _, values = arguments.read(words, frozenset(), _VALUES, f"after {arguments.PUSH}")
    vm = values.get("--vm", "")
    if not is_vm_name(vm):
        raise usage(
            f"{arguments.PUSH} needs --vm with a valid name", "give the instance name of the VM's unit"
        )
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise LaunchError(
            "$CREDENTIALS_DIRECTORY is not set",
            hint=f"run it as a unit: systemctl start credferry-push@{vm}.service",
            status=Exit.CREDENTIALS,
        )
    return Push(vm, values.get("--unit", f"microvm@{vm}.service"), directory)


def _blocks(delivered: Delivered) -> tuple[Item, list[Item]]:
    """The guest's manifest and the other credentials, as they are sent. Raises `LaunchError`."""
    items = [_item(credential) for credential in delivered.credentials]
    heads = [item for item in items if item.name == PUSH_MANIFEST]
    if not heads:
        raise LaunchError(
            f"VM {delivered.manifest.vm} is not live: its generation {delivered.manifest.generation} has no "
            "manifest for the guest",
            hint="say live = true for the VM in the agent's configuration; the agent seals it anew",
            status=Exit.CREDENTIALS,
        )
    return heads[0], [item for item in items if item.name != PUSH_MANIFEST]


def _item(credential: Credential) -> Item:
    content = credential.value
    if credential.kind is not Kind.SEALED:
        content = Secret(binascii.b2a_base64(content.reveal(), newline=False))
    return Item(credential.name, credential.kind, content)


def _check_hello(hello: Hello, delivered: Delivered) -> None:
    if _NEEDED not in hello.capabilities:
        raise GuestRefusedError("not-writable", "")
    if hello.generation > delivered.manifest.generation:
        raise GuestRefusedError("older", "")


def _failure(vm: str, error: PushError, *, is_sent: bool) -> LaunchError:
    """The error for a push that failed. ``is_sent``: whether the guest may have got all of it."""
    match error:
        case NoReceiverError() if not is_sent:
            return LaunchError(
                f"VM {vm} took no push: {error}",
                hint="its guest may still boot: push again; else see credferry-receive.socket in the guest",
                status=Exit.LATER,
            )
        case GuestRefusedError():
            what, hint, status = _REFUSED.get(error.reason, (error.reason, _RESTART, Exit.UNKNOWN))
            if not is_sent and status is not Exit.LATER:
                status = Exit.GUEST
            detail = f" ({error.detail})" if error.detail else ""
            return LaunchError(
                f"the guest of VM {vm} refused the push: {what}{detail}", hint=hint, status=status
            )
    return LaunchError(
        f"the push to VM {vm} failed: {error}",
        hint="what the guest holds is not known; push again, or restart the VM"
        if is_sent
        else "nothing was sent; see what listens in the guest on vsock port 900, or restart the VM",
        status=Exit.UNKNOWN if is_sent else Exit.GUEST,
    )
