# SPDX-License-Identifier: MIT
"""When a secret ends by its own words: a certificate (RFC 5280), or a JSON web token (RFC 7519).

The result holds a moment only. No error quotes the value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from credferry.agent.config.model import VmConfig
    from credferry.launcher.handoff import Secret

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_TOKEN: Final = re.compile(rb"\s*[\w-]+\.([\w-]+)\.[\w-]*\s*", re.ASCII)
_TOKEN_MAX: Final = 1 << 16


def expires(secret: Secret) -> datetime | None:
    """The first moment at which any part of a secret ends; None if it says nothing of an end.

    This checks no signature, and does not check that a token is valid.
    """
    value = secret.reveal()
    return min(_of_certificates(value) if _CERTIFICATE in value else _of_token(value), default=None)


def ends_of(vm: VmConfig, values: Mapping[str, Secret]) -> dict[str, float]:
    """When a VM's secrets end, in seconds since 1970, by credential."""
    secrets = {name: each for name, each in values.items() if vm.credentials[name].secret is not None}
    found = {name: expires(value) for name, value in secrets.items()}
    return {name: end.timestamp() for name, end in found.items() if end is not None}


def _of_certificates(value: bytes) -> Iterator[datetime]:
    from cryptography import x509  # noqa: PLC0415 (of no use where there is no certificate)

    try:
        found = x509.load_pem_x509_certificates(value)
        yield from [each.not_valid_after_utc for each in found]
    except Exception:  # noqa: BLE001 (cryptography has many kinds, and their texts may quote the value)
        return


def _of_token(value: bytes) -> Iterator[datetime]:
    found = _TOKEN.fullmatch(value) if len(value) <= _TOKEN_MAX else None
    if found is None:
        return
    try:
        claims = json.loads(base64.urlsafe_b64decode(found[1] + b"=" * (-len(found[1]) % 4)))
        seconds = claims["exp"]
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
            yield datetime.fromtimestamp(seconds, UTC)
    except (binascii.Error, ValueError, TypeError, KeyError, OverflowError, RecursionError, OSError):
        return
