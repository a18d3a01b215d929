# SPDX-License-Identifier: MIT
"""How the values of a store are sealed at rest: with the host's key, or by systemd with a TPM2.

A manifest holds keyed digests only, and is always sealed with the host's key, so a look at VMs uses no TPM.
Each value opens by its own kind. So a change of the setting leaves nothing unreadable.

A witness shows whether the TPM is still the one that the store was sealed with. It is a sealed text that is
no secret, in STATE/tpm.json. If the witness opens, so does all that was sealed like it.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from credferry.agent.errors import SealError, TpmError
from credferry.agent.sealing.credential import seal, unseal
from credferry.agent.sealing.kinds import HOST, kind_of
from credferry.agent.sealing.policy import OF_HOST, OpeningPolicy, policy_of
from credferry.agent.sealing.systemd_creds import Options, SystemdCreds
from credferry.agent.store.files import make_directory, replace_durably, store_error
from credferry.agent.untrusted import read_untrusted

if TYPE_CHECKING:
    from credferry.agent.sealing.keys import CredentialKey

AUTO: Final = "auto"
WITNESS_FILE: Final = "tpm.json"
_NAME: Final = "credferry_witness"
_TEXT: Final = b"credferry: this TPM opens what this store holds\n"
_RECORD_MAX: Final = 1 << 20
_PUBLIC_KEY_MAX: Final = 1 << 16


class Program(Protocol):
    """systemd's program, or a test's."""

    def seal(self, value: bytes, *, name: str, options: Options) -> bytes:
        """Seal a value. Raises `SealError`, and `TpmError` without a usable TPM."""

    def unseal(self, blob: bytes, *, name: str) -> bytes:
        """Open a sealed value. Raises as `seal` does."""


class Witness(msgspec.Struct, frozen=True):
    """A text that was sealed as the values of the store are."""

    options: list[str]
    """What systemd was asked to seal with."""
    sealed: str
    settled: bool = False
    """Whether all generations are sealed like it, or cannot be."""


@dataclass(slots=True, eq=False)
class AtRest:
    """Seals and opens the values of one store, and remembers what it has found out about the TPM."""

    state: Path
    options: Options | None = None
    """What systemd is asked to seal with; None for the host's key alone, without systemd."""
    program: Program = field(default_factory=SystemdCreds)
    obstacle: SealError | None = field(default=None, init=False)
    """Why nothing can be sealed or opened, as of the last examination; None if nothing is known."""
    _seen: Witness | None = field(default=None, init=False)
    """The witness that was opened last; None before the first examination."""
    _opened_at: float = field(default=-math.inf, init=False)
    """When the witness was opened last, by the monotonic clock."""

    def seal(self, value: bytes, *, name: str, key: CredentialKey) -> bytes:
        """Seal a value. Raises `SealError`, and `TpmError` if the TPM cannot be used."""
        policy = self.policy
        if self.options is None or (policy is not None and policy.kind is HOST):
            return seal(value, name=name, key=key)
        try:
            return self.program.seal(value, name=name, options=self.options)
        except TpmError as error:
            self.obstacle = error
            raise

    def unseal(self, blob: bytes, *, name: str, key: CredentialKey) -> bytes:
        """Open a value of any kind of key. Raises as `seal` does."""
        kind = kind_of(blob)
        # A later systemd may write other ids, which systemd itself then knows.
        is_for_systemd = self.options is not None if kind is None else kind.tpm and not kind.scoped
        return self.program.unseal(blob, name=name) if is_for_systemd else unseal(blob, name=name, key=key)

    @property
    def policy(self) -> OpeningPolicy | None:
        """What new values are sealed with; None if a later systemd seals with what is not known here.

        Examines the TPM, if it has not done so. Raises `SealError`.
        """
        if self.options is None:
            return OF_HOST
        seen = self._seen or self.examine()
        return policy_of(seen.sealed.encode())

    @property
    def witness(self) -> str:
        """A text that changes when the TPM that opens the store does; empty without a TPM."""
        return self._seen.sealed if self._seen is not None else ""

    @property
    def is_bound(self) -> bool:
        """Whether anything in the store may need the TPM to open."""
        return (self.state / WITNESS_FILE).exists()

    @property
    def is_settled(self) -> bool:
        """Whether all generations are known to be sealed as new values are, or cannot be."""
        if self.options is None:
            return not self.is_bound
        return self._seen is not None and self._seen.settled

    def examine(self, *, within: float = 0.0) -> Witness:
        """Find out whether the TPM opens what it sealed. If it does not, take it for another TPM.

        Returns the witness that opens. Asks nothing of a TPM that opened it less than ``within`` seconds
        ago. Otherwise this costs one operation of the TPM, and two more if there is no witness, or if it is
        shut. Raises `SealError`, and `TpmError` if the TPM cannot be used. Raises `StoreError` if the
        witness cannot be written.
        """
        if self._seen and self.obstacle is None and time.monotonic() - self._opened_at < within:
            return self._seen
        try:
            found = self._examined()
        except SealError as error:
            self.obstacle = error
            raise
        self.obstacle, self._seen, self._opened_at = None, found, time.monotonic()
        return found

    def tried(self) -> OpeningPolicy | None:
        """What systemd seals with now, after it has sealed and opened a text. Writes nothing.

        None if nothing else than the host's key is asked for. Raises `SealError` and `TpmError`.
        """
        return policy_of(self._made(self.options)) if self.options is not None else None

    def opens_witness(self) -> bool | None:
        """Whether the TPM opens what it sealed last; None where there is no witness. Raises `TpmError`."""
        known = self._read()
        return self._opens(known.sealed.encode()) if known is not None else None

    def settle(self) -> None:
        """Note that all generations are sealed like new values, or cannot be. Raises `StoreError`."""
        if self.options is None:
            try:
                (self.state / WITNESS_FILE).unlink(missing_ok=True)
            except OSError as error:
                raise store_error(self.state / WITNESS_FILE, error) from None
        elif self._seen and not self._seen.settled:
            self._write(msgspec.structs.replace(self._seen, settled=True))

    def _examined(self) -> Witness:
        if self.options is None:
            return Witness([], "")
        asked = [*self.options.arguments, _content_of(self.options.public_key)]
        known = self._read()
        if known is not None and known.options == asked and self._opens(known.sealed.encode()):
            if self._seen or self.options.with_key != AUTO:
                return known
            # systemd decides anew at each start of the agent: the host may have got a TPM since.
            if policy_of(self._made(self.options)) == policy_of(known.sealed.encode()):
                return known
        found = Witness(asked, self._made(self.options).decode())
        self._write(found)
        return found

    def _opens(self, witness: bytes) -> bool:
        """Whether a witness opens. It does not after the TPM was cleared, or its PCRs have changed."""
        try:
            return self._open(witness) == _TEXT
        except TpmError:
            raise
        except SealError:
            return False

    def _made(self, options: Options) -> bytes:
        made = self.program.seal(_TEXT, name=_NAME, options=options)
        kind = kind_of(made)
        if kind is not None and not kind.tpm and (options.with_key != AUTO or kind is not HOST):
            raise SealError(
                f"systemd was asked to seal with {options.with_key}, and sealed with {kind.words}",
                hint="from systemd 256 on only root may choose: run the agent as root",
            )
        try:
            opened = self._open(made)
        except TpmError:
            raise
        except SealError as error:
            raise SealError(
                f"systemd does not open what it seals with {' '.join(options.arguments)}: {error}",
                hint="change tpm2_pcrs or tpm2_public_key; a public key needs a signature of the PCRs",
            ) from None
        if opened != _TEXT:
            raise SealError("systemd opens other bytes than it sealed", hint="see: credferry doctor")
        return made

    def _open(self, blob: bytes) -> bytes:
        return self.program.unseal(blob, name=_NAME)

    def _read(self) -> Witness | None:
        try:
            text = read_untrusted(self.state / WITNESS_FILE, limit=_RECORD_MAX, below=self.state)
            return msgspec.json.decode(text, type=Witness)
        except (OSError, ValueError, RecursionError):
            return None

    def _write(self, witness: Witness) -> None:
        path = self.state / WITNESS_FILE
        try:
            make_directory(self.state)
            replace_durably(path, msgspec.json.encode(witness))
        except OSError as error:
            raise store_error(path, error) from None
        self._seen = witness


def _content_of(public_key: str) -> str:
    """The public key, as text; empty where there is none.

    Its file's inode and times would not do: those of an image or of a Nix store can be the same for another
    key, and those of a file in /run are others after each boot.
    """
    if not public_key:
        return ""
    try:
        content = read_untrusted(Path(os.path.realpath(public_key)), limit=_PUBLIC_KEY_MAX)
    except OSError:
        return ""  # systemd says what is wrong with it
    return content.decode(errors="backslashreplace")
