# SPDX-License-Identifier: MIT
"""Types of values that several tables of the configuration have."""

from __future__ import annotations

from typing import Annotated

import msgspec

_PATH, _PROM = r"^/[^\0]*\Z", r"^/[^\0]*\.prom\Z"
_MACHINE_ID = (
    r"^(?=.*[1-9a-fA-F])[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}\Z"
)
_SERVICE = r"^[A-Za-z0-9:_.\\-]+(@([A-Za-z0-9:_.\\@-]|%i)+)?\.service\Z|^\Z"
_CREDENTIAL_FILE = r"^/[^\0]*\Z|^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}\Z"
_GROUP = r"^[A-Za-z0-9.-]{1,64}\Z"
_HOST = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z|^\Z"
_PCRS = r"^([0-9]{1,2}(\+[0-9]{1,2})*)?\Z"
PATTERNS = {
    _PCRS: "expected numbers of PCRs with + between them, such as 7 or 0+7",
    _SERVICE: "expected the name of a service, such as drain@%i.service",
    _PATH: "expected an absolute path",
    _PROM: "expected an absolute path of a file that ends in .prom",
    _CREDENTIAL_FILE: "expected an absolute path, or the name of a credential of the agent's unit",
    _GROUP: "expected a name of 1 to 64 characters of A-Z a-z 0-9 . -",
    _HOST: "expected a name of 1 to 253 characters of A-Z a-z 0-9 _ . -",
    _MACHINE_ID: "expected 32 hexadecimal digits that are not all zero, as in /etc/machine-id",
}
"""What the patterns mean, for messages."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=_PATH)]
PromPath = Annotated[str, msgspec.Meta(pattern=_PROM)]
MachineId = Annotated[str, msgspec.Meta(pattern=_MACHINE_ID)]
Pcrs = Annotated[str, msgspec.Meta(pattern=_PCRS, max_length=64)]
"""Numbers of PCRs, as ``--tpm2-pcrs=`` of systemd-creds takes them."""
UnitTemplate = Annotated[str, msgspec.Meta(pattern=_SERVICE, max_length=255)]
"""The name of a service, in which ``%i`` is the VM's name; empty for none."""
CredentialFile = Annotated[str, msgspec.Meta(pattern=_CREDENTIAL_FILE)]
"""An absolute path, or a name in the directory of the agent's own credentials."""
GroupName = Annotated[str, msgspec.Meta(pattern=_GROUP)]
HostName = Annotated[str, msgspec.Meta(pattern=_HOST)]
