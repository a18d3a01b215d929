# SPDX-License-Identifier: MIT
"""Seals and opens credentials with systemd's own program, where a TPM2 takes part.

A value goes through pipes only: no argument, variable or file holds one. systemd's own messages are not
passed on. They are recognised, and this module says in its own words what they mean.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from credferry.agent.errors import SealError, TpmError
from credferry.agent.sealing.credential import SEALED_MAX, require_size

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS: Final = 30.0
"""The limit of one operation. A TPM takes up to a second, and longer while others use it."""
_OUTPUT_MAX: Final = 2 * SEALED_MAX
_PROGRAM: Final = "systemd-creds"
_PATH: Final = "/run/current-system/sw/bin:/usr/bin:/bin"
_DEVICE: Final = "SYSTEMD_TPM2_DEVICE"
"""systemd's own variable, which names the TPM for PID 1 and its programs, if not the machine's first."""

_MISSING: Final = "systemd finds no TPM2 that it can use"
_SILENT: Final = "the host's TPM2 does not answer"
_SEE_TPM: Final = (
    "see: systemd-creds has-tpm2; it needs a TPM that is switched on, libtss2, and for the agent "
    "contrib/systemd/credferry-tpm.conf"
)
_LOCKED: Final = ("lockout", "errorcode (0x00000921)", "no locks available")
"""How systemd 252, libtss2 and systemd 257 say that the TPM is locked. Another message may follow."""
_NO_CONTEXT: Final = "failed to create tpm2 context"
"""What systemd 257 says last of a TPM that is missing or does not answer. An earlier message says which."""
_UNUSABLE: Final = {
    "device file": (_MISSING, _SEE_TPM),
    "io.systemd.credentials": (
        "from systemd 256 on, only root may choose what a credential is sealed with",
        'run the agent as root, or set seal_key = "host"',
    ),
    "tpm2 support is not": (_MISSING, _SEE_TPM),
    "tpm2 not supported": (_MISSING, _SEE_TPM),
    "no tpm2": (_MISSING, _SEE_TPM),
    "failed to initialize tcti": (_MISSING, _SEE_TPM),
    "failed to start up tpm": (_SILENT, "see dmesg; a cold start resets the TPM"),
    "esys_startup": (_SILENT, "see dmesg; a cold start resets the TPM"),
    "failed to seal to tpm2": ("the host's TPM2 does not seal", "see dmesg; a cold start resets the TPM"),
    "out of memory for": ("the host's TPM2 is busy", "the agent tries again"),
    "tcti": (_SILENT, "see dmesg; a cold start resets the TPM"),
}
"""What systemd says, in lower case, where the TPM can be used for no credential at all."""
_PCRS: Final = "PCRs of the TPM2 have other values than when it was sealed"
_OTHER: Final = "the TPM2 was cleared since it was sealed, or is another one"
_SHUT: Final = {
    "policy digest does not match": _PCRS,
    "using tpm2: operation not permitted": _PCRS,
    "integrity check failed": _OTHER,
    "state not recoverable": _OTHER,
    "pcr bank invalid": "it was sealed without PCRs, and this systemd then opens nothing",
    "signature": "there is no signature of the PCRs' present values",
    "decryption failed": "it was changed, or the host has another key",
    "does not match filename": "it was sealed under another name",
    "time passed": "it has expired",
}
"""What systemd says where a credential does not open, and what that means."""


@dataclass(frozen=True, slots=True)
class Options:
    """What systemd is asked to seal with, in its own words."""

    with_key: str
    """As for ``--with-key=``."""
    pcrs: str | None = None
    """As for ``--tpm2-pcrs=``; None for systemd's own default."""
    public_key: str = ""
    """As for ``--tpm2-public-key=``; empty for none."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of ``systemd-creds encrypt``."""
        has_key = self.public_key and self.with_key != "auto"
        found = [f"--with-key={self.with_key}{'-with-public-key' if has_key else ''}"]
        if self.pcrs is not None:
            found.append(f"--tpm2-pcrs={self.pcrs}")
        if self.public_key:
            found.append(f"--tpm2-public-key={self.public_key}")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class SystemdCreds:
    """systemd's program, which uses the TPM2 that PID 1 uses."""

    key_file: str = ""
    """The host's key file, if it is not systemd's own."""

    def seal(self, value: bytes, *, name: str, options: Options) -> bytes:
        """Seal a value, as PID 1 can open it. Raises `SealError`, and `TpmError` without a usable TPM."""
        require_size(value, name)
        done = self._run(["encrypt", f"--name={name}", *options.arguments, "-", "-"], value)
        if done.returncode:
            raise _error(f"cannot seal credential {name!r}", done.stderr)
        return done.stdout

    def unseal(self, blob: bytes, *, name: str) -> bytes:
        """Open what systemd sealed. Raises `SealError`, and `TpmError` without a usable TPM."""
        done = self._run(["decrypt", f"--name={name}", "-", "-"], blob)
        if done.returncode:
            raise _error(f"credential {name!r} does not open", done.stderr)
        return done.stdout

    def _run(self, arguments: Sequence[str], given: bytes) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": _PATH, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_LOG_TARGET": "console"}
        if device := os.environ.get(_DEVICE):
            environment[_DEVICE] = device
        if self.key_file:
            environment["SYSTEMD_CREDENTIAL_SECRET"] = self.key_file
        try:
            done = subprocess.run(
                [_PROGRAM, *arguments],
                input=given,
                capture_output=True,
                check=False,
                timeout=_SECONDS,
                env=environment,
                cwd="/",
            )
        except subprocess.TimeoutExpired:
            raise TpmError(
                f"{_PROGRAM} did not end within {_SECONDS:g} seconds",
                hint="see dmesg: the TPM may not answer; a cold start resets it",
            ) from None
        except OSError as error:
            raise TpmError(
                f"cannot run {_PROGRAM}: {os.strerror(error.errno or 0)}",
                hint="the agent's unit needs contrib/systemd/credferry-tpm.conf; see: credferry doctor",
            ) from None
        if len(done.stdout) > _OUTPUT_MAX:
            raise SealError(
                f"{_PROGRAM} wrote more than a credential can have", hint="see: credferry doctor"
            )
        return done


def _error(what: str, messages: bytes) -> SealError:
    """What systemd's messages mean. The last message decides, so the search begins there."""
    lines = [line.decode("ascii", "replace").lower() for line in reversed(messages.splitlines())]
    if any(words in line for line in lines for words in _LOCKED):
        return TpmError(
            "the host's TPM2 is locked, because too many openings have failed",
            hint="wait until it unlocks itself, or reset it: tpm2_dictionarylockout --clear-lockout",
        )
    for line in (each for each in lines if _NO_CONTEXT not in each):
        for words, (meaning, remedy) in _UNUSABLE.items():
            if words in line:
                return TpmError(meaning, hint=remedy)
        for words, reason in _SHUT.items():
            if words in line:
                return SealError(f"{what}: {reason}", hint="seal it again on this host")
    if any(_NO_CONTEXT in line for line in lines):
        return TpmError(_SILENT, hint="see dmesg; a cold start resets the TPM")
    return SealError(f"{what}: {_PROGRAM} failed", hint="see: credferry doctor, which tries it as root")
