# SPDX-License-Identifier: MIT
"""The contract between agent and launcher: file names, manifest, stamp, and the form of an OEM string.

The agent writes a generation of sealed credentials; PID 1 unseals it into the VM unit's credential
directory; the launcher reads it there and leaves a stamp. Of the launcher, the agent imports only this
module, `errors` and `journal`.

One job: the contract. It stays in one file, as each further module costs every start of a VM an import.
"""

from __future__ import annotations

import binascii
import contextlib
import enum
import os

from credferry.launcher import keyed
from credferry.launcher.record import FrozenRecord, asdict, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Any, final
else:

    def final(kind: type) -> type:
        """Replaces `typing.final`, which only type checkers need."""
        return kind


CREDENTIAL_PREFIX = "credferry"
"""ID in the unit's ``LoadCredentialEncrypted=``, which loads a whole generation directory."""

MANIFEST_FILE = "manifest"
VALUE_PREFIX = "value."
RUNTIME_PARENT = "credferry-vms"
"""``RuntimeDirectory=credferry-vms/%i`` of the VM's own unit: systemd removes it when the VM stops."""
STAMP_FILE = "stamp.json"
VSOCK_FILE = "vsock"
"""The launcher notes the path of the VM's vsock socket there, beside the stamp."""
PUSHED_MAX = 64
"""The most credentials of one push."""
HYPERVISOR_PUSHES_SINCE = 50
"""The first cloud-hypervisor that brings a push to a guest: before, its seccomp filter forbids sendto."""
PUSH_MANIFEST = "credferry.manifest"
"""The credential of a VM with ``live = true`` that tells its guest which generation it holds. In a push,
the guest checks the new values against it."""
GUEST_KEYS_PARENT = "credferry-guest-keys"
"""Root's directory below the system's runtime directory. It has a directory for each guest that gets its
key from the host, which the guest mounts."""
GUEST_KEY_FILE = "credential.secret"
EVIDENCE_PARENT = "credferry-evidence"
"""Root's directory below the system's runtime directory. At each start, root copies the manifest that PID 1
has unsealed to ``VM@INVOCATION`` there (``ExecStartPre=`` of the VM's unit)."""
PUSHED_PARENT = "credferry-pushed"
"""Root's directory below the system's runtime directory. Root copies the manifest that PID 1 has unsealed
for a push to ``VM@before`` there, and to ``VM`` once the push has succeeded."""
MANIFEST_VERSION = 2
"""Version of the manifest's format. Version 1 had no key and no digests of values."""
STAMP_VERSION = 1
GENERATION_MAX = 2**31 - 1
"""The highest generation number: D-Bus publishes these numbers as 32 bits."""

NAME_MAX = 255 - len(f"{CREDENTIAL_PREFIX}_{VALUE_PREFIX}")
"""Bytes of a credential's name. systemd allows 255 for the name with its prefix in the unit
(CREDENTIAL_NAME_MAX, src/shared/creds-util.h)."""

OEM_TOTAL_BEFORE_257 = 4091
"""Bytes of all OEM strings that a guest's systemd 252 to 256 sees: one read() of a 4096-byte sysfs page,
less the 5-byte header. systemd silently cuts the string that crosses the limit (systemd PR #33539)."""
OEM_TOTAL_MAX = 65_398
"""Bytes of all OEM strings that fit between 0xF0000 and 0x100000 beside cloud-hypervisor's own tables
(arch/src/x86_64/smbios.rs, which does not check)."""
OEM_COUNT_MAX = 255
"""The most OEM strings of a VM. The SMBIOS type 11 count is one byte, and cloud-hypervisor lets it wrap."""
INITRD_TOTAL_MAX = 1 << 20
"""Bytes of credentials that a guest takes from its initrd (systemd's CREDENTIALS_TOTAL_SIZE_MAX,
src/shared/creds-util.h)."""
SYSTEMD_READS_ALL_OEM_STRINGS = 257
"""The first systemd whose guest side reads more than one page of OEM strings."""

MESSAGE_ID_LAUNCHED = "3f0d1b2ad3ff4b7c9a5b1c6f0f8e6c11"
MESSAGE_ID_GUEST_REBOOT = "8d2f6f0a5f2e4f6c8b7a9e10d4c2b357"
MESSAGE_ID_LAUNCH_REFUSED = "c1a4e7d09b3f4c55a2d86e4b7f01932e"
MESSAGE_ID_LAUNCH_WARNING = "2df75db92e06473696dcb291dbc5e283"

_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_HEX = frozenset("0123456789abcdef")


class HandoffError(ValueError):
    """A manifest or stamp that breaks the contract. The error's text never quotes its content."""


class EarlierFormError(HandoffError):
    """A manifest or stamp of an earlier format version."""


@final
class Secret:
    """Bytes that are never shown: repr and format hide the value and its length, and pickle is refused."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The value. The caller must pass it to its destination only."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    __hash__ = None  # type: ignore[assignment]  # a hash would be an unkeyed digest of the value

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a secret is not pickled")


class Kind(enum.StrEnum):
    """How a credential's bytes are protected when they leave the host."""

    PLAIN = "plain"
    """A secret that everyone who sees the OEM string can read."""
    SEALED = "sealed"
    """A secret sealed with the guest's own key: systemd's encrypted credential, Base64 on one line."""
    TEXT = "text"
    """Not a secret: the configuration holds its text."""


class Channel(enum.StrEnum):
    """How the credentials leave the unit's credentials directory."""

    API = "api"
    COMMAND = "command"
    DIRECTORY = "directory"
    """They do not: the unit's own program reads them there, and no launcher is involved."""

    def room_taken(self, total: int, count: int) -> int:
        """Bytes that so many OEM strings, with ``total`` bytes as `oem_size` counts, take on their way."""
        # In JSON, a string takes two quotes and a comma. In an argument, it takes a comma.
        return total + 2 * count if self is Channel.API else total


LAUNCHED = (Channel.API, Channel.COMMAND)
"""The channels in which the launcher passes credentials on."""


class Delivery(FrozenRecord):
    """How a VM's configuration says that credentials reach the guest.

    ``guest_systemd`` is the lowest systemd version that the guest may run. It sets the OEM strings' limit.
    With ``initrd``, sealed credentials travel in the guest's initrd and not as OEM strings.
    """

    channel: Channel = Channel.API
    guest_systemd: int = 252
    plaintext_in_argv: bool = False
    allowed_names: tuple[str, ...] = ()
    initrd: bool = False

    def is_oem(self, kind: Kind) -> bool:
        """Whether credentials of this kind reach the guest as OEM strings."""
        return self.channel is not Channel.DIRECTORY and not (self.initrd and kind is Kind.SEALED)

    @property
    def oem_total_max(self) -> int:
        """Bytes that all OEM strings of the VM may take, each with its NUL."""
        return OEM_TOTAL_MAX if self.guest_systemd >= SYSTEMD_READS_ALL_OEM_STRINGS else OEM_TOTAL_BEFORE_257


class ManifestEntry(FrozenRecord):
    """One credential of a generation.

    The fingerprint is keyed: without the host's key, it reveals nothing about the value. ``digest`` (64 hex
    digits) binds the value to this entry; see `value_digest`.
    """

    name: str
    kind: Kind
    fingerprint: str
    digest: str = field(default="", repr=False)


class Manifest(FrozenRecord):
    """The content of a generation. The manifest is itself one of the generation's sealed credentials.

    ``digest`` (64 hex digits) identifies everything that the guest gets. ``run`` (32 hex digits) is the
    correlation ID of this generation's journal records. ``key`` (64 hex digits) is random and keys the
    digests of the values. A reader of the manifest can therefore test guesses of the values: only the VM's
    user, root and the agent may read it.
    """

    vm: str
    generation: int
    digest: str
    run: str
    delivery: Delivery
    credentials: tuple[ManifestEntry, ...]
    key: str = field(default="", repr=False)

    def bound(self, values: Mapping[str, Secret], key: str) -> Manifest:
        """The same manifest, bound to the values of its generation by a new random key."""
        entries = tuple(
            entry.but(digest=value_digest(key, self, entry, values[entry.name]))
            for entry in self.credentials
        )
        return self.but(credentials=entries, key=key)

    @property
    def is_live(self) -> bool:
        """Whether the generation can be pushed to the running guest."""
        return any(entry.name == PUSH_MANIFEST for entry in self.credentials)

    def holds(self, entry: ManifestEntry, value: Secret) -> bool:
        """Whether a value is the one to which this manifest binds the entry."""
        return value_digest(self.key, self, entry, value) == entry.digest

    def to_bytes(self) -> bytes:
        """UTF-8 JSON with sorted keys: equal manifests give equal bytes."""
        return _dump(MANIFEST_VERSION, asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, loads: Callable[[bytes], object] | None = None) -> Manifest:
        """Inverse of `to_bytes`. ``loads`` stands in for `json.loads`.

        Raises `HandoffError` on anything else.
        """
        manifest: Manifest = _load("manifest", MANIFEST_VERSION, data, _manifest, loads or _loads)
        return manifest


class Stamp(FrozenRecord):
    """The launcher's report of one start of its VM.

    The VM's user writes the stamp, so the agent treats it only as a hint. It says that the launcher has
    launched this invocation. ``other_oem_bytes`` are the bytes of the VM's OEM strings that are not
    credferry's: with them, the agent checks beforehand whether a new generation fits. ``room`` are the bytes
    that the channel had for credferry's strings beside the VM's own configuration, counted as
    `Channel.room_taken` counts them; 0 if that is not known. Only root's evidence shows which generation the
    VM was started with.
    """

    vm: str
    generation: int
    digest: str
    run: str
    invocation_id: str
    channel: Channel
    other_oem_bytes: int
    room: int = 0

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, keys sorted."""
        return _dump(STAMP_VERSION, asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Stamp:
        """Inverse of `to_bytes`. Raises `HandoffError` on anything else."""
        stamp: Stamp = _load("stamp", STAMP_VERSION, data, _stamp)
        return stamp


def is_credential_name(name: str) -> bool:
    """Whether a name is valid for systemd and safe in every version of cloud-hypervisor's option grammar."""
    return 0 < len(name) <= NAME_MAX and _NAME.issuperset(name) and name not in {".", ".."}


def is_vm_name(name: str) -> bool:
    """Whether a name needs no escaping as a unit's instance, a directory and a journal field's value."""
    return 0 < len(name) <= 64 and _NAME.issuperset(name) and name[0] not in ".-"  # noqa: PLR2004 (HOST_NAME_MAX)


def is_powerful_name(name: str) -> bool:
    """Whether a credential of this name can change the guest itself."""
    if "." not in name:
        return False
    from credferry.launcher import power  # noqa: PLC0415 (names without a dot do not need it)

    return power.is_powerful(name)


def value_file(name: str) -> str:
    """File name of a credential within a generation directory."""
    return VALUE_PREFIX + name


def unit_credential(file: str) -> str:
    """Name of a generation's file in ``$CREDENTIALS_DIRECTORY``. The agent seals it under the same name."""
    return f"{CREDENTIAL_PREFIX}_{file}"


def oem_string(name: str, kind: Kind, value: Secret) -> Secret:
    """The SMBIOS OEM string of a credential, without its NUL.

    Plain values travel as Base64, since every version's parser keeps only that form unchanged. Sealed ones
    are Base64 already and must stay text: `LoadCredentialEncrypted=` cannot read them otherwise.
    """
    if kind is Kind.SEALED:
        return Secret(b"io.systemd.credential:" + name.encode() + b"=" + value.reveal())
    encoded = binascii.b2a_base64(value.reveal(), newline=False)
    return Secret(b"io.systemd.credential.binary:" + name.encode() + b"=" + encoded)


def oem_size(strings: Iterable[bytes]) -> int:
    """Bytes that OEM strings take in the SMBIOS table, each with its NUL."""
    return sum(len(string) + 1 for string in strings)


def value_digest(key: str, manifest: Manifest, entry: ManifestEntry, value: Secret) -> str:
    """Digest that binds a value to its VM, generation, name and kind: 64 hex digits, keyed with ``key``.

    Each part follows its length, so different lists of parts never give the same bytes.
    """
    parts = (
        b"credferry value",
        manifest.vm.encode(),
        str(manifest.generation).encode(),
        entry.name.encode(),
        entry.kind.encode(),
        value.reveal(),
    )
    framed = b"".join([len(part).to_bytes(8, "big") + part for part in parts])
    return keyed.digest(bytes.fromhex(key), framed).hex()


def push_receipt(manifest: Manifest) -> str:
    """What the guest returns when it has applied a push of this generation: 32 hex digits.

    The guest finds it in its `PUSH_MANIFEST`. Nobody can compute it without the manifest's key.
    """
    content = f"credferry receipt {manifest.vm} {manifest.generation}".encode()
    return keyed.digest(bytes.fromhex(manifest.key), content).hex()[:32]


def evidence_name(vm: str, invocation_id: str) -> str:
    """Name of the evidence of one start, below `EVIDENCE_PARENT`."""
    return f"{vm}@{invocation_id}"


def stamp_path(vm: str, runtime: Path) -> Path:
    """Path of a VM's stamp below ``runtime``, the system's runtime directory (``/run``)."""
    return runtime / RUNTIME_PARENT / vm / STAMP_FILE


def write_stamp(directory: str | os.PathLike[str], stamp: Stamp) -> None:
    """Write a stamp into a runtime directory, whole or not at all, readable by everyone."""
    temporary = os.path.join(directory, f".{STAMP_FILE}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(stamp.to_bytes())
        os.rename(temporary, os.path.join(directory, STAMP_FILE))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _dump(version: int, fields: dict[str, Any]) -> bytes:
    import json  # noqa: PLC0415 (a VM's start does without it: it loads `re`)

    return json.dumps({"version": version, **fields}, sort_keys=True, separators=(",", ":")).encode()


def _loads(data: bytes) -> object:
    import json  # noqa: PLC0415 (a VM's start does without it: it loads `re`)

    found: object = json.loads(data)
    return found


def _load(
    what: str,
    version: int,
    data: bytes,
    build: Any,  # noqa: ANN401 (two builders, two results; typed at the callers)
    loads: Callable[[bytes], object] = _loads,
) -> Any:  # noqa: ANN401 (as above)
    try:
        fields = loads(data)
        found = _number(fields.pop("version", 0)) if isinstance(fields, dict) else 0
        if 0 < found < version:
            raise EarlierFormError(f"{what}: has format version {found}, not {version}")
        if found != version:
            raise HandoffError(f"{what}: does not have format version {version}")
        return build(fields)
    except HandoffError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        raise HandoffError(f"{what}: malformed") from None


def _manifest(fields: dict[str, Any]) -> Manifest:
    # Manifests that were sealed before the initrd option existed do not have this key.
    delivery = _table({"initrd": False, **fields.pop("delivery")}, Delivery)
    entries = [_table(entry, ManifestEntry) for entry in _list(fields.pop("credentials"))]
    manifest = Manifest(
        vm=_name(fields.pop("vm")),
        generation=_number(fields.pop("generation"), GENERATION_MAX),
        digest=_hex(fields.pop("digest"), 64),
        run=_hex(fields.pop("run"), 32),
        delivery=Delivery(
            channel=Channel(delivery["channel"]),
            guest_systemd=_number(delivery["guest_systemd"]),
            plaintext_in_argv=_flag(delivery["plaintext_in_argv"]),
            allowed_names=tuple(_credential(name) for name in _list(delivery["allowed_names"])),
            initrd=_flag(delivery["initrd"]),
        ),
        credentials=tuple(
            ManifestEntry(
                _credential(entry["name"]),
                Kind(entry["kind"]),
                _hex(entry["fingerprint"], 16),
                _hex(entry["digest"], 64),
            )
            for entry in entries
        ),
        key=_hex(fields.pop("key"), 64),
    )
    names = [entry.name for entry in manifest.credentials]
    if fields or len(set(names)) != len(names):
        raise HandoffError("manifest: unknown field or repeated credential")
    return manifest


def _stamp(fields: dict[str, Any]) -> Stamp:
    stamp = Stamp(
        vm=_name(fields.pop("vm")),
        generation=_number(fields.pop("generation"), GENERATION_MAX),
        digest=_hex(fields.pop("digest"), 64),
        run=_hex(fields.pop("run"), 32),
        invocation_id=_hex(fields.pop("invocation_id"), 32),
        channel=Channel(fields.pop("channel")),
        other_oem_bytes=_number(fields.pop("other_oem_bytes"), OEM_TOTAL_MAX),
        room=_number(fields.pop("room", 0)),  # stamps of VMs that an earlier release started have none
    )
    if fields:
        raise HandoffError("stamp: unknown field")
    return stamp


def _table(value: object, kind: type[Delivery | ManifestEntry]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(kind.__match_args__):
        raise ValueError
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not is_vm_name(value):
        raise ValueError
    return value


def _credential(value: object) -> str:
    if not isinstance(value, str) or not is_credential_name(value):
        raise ValueError
    return value


def _number(value: object, most: int = 2**31 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _hex(value: object, digits: int) -> str:
    if not isinstance(value, str) or len(value) != digits or not _HEX.issuperset(value):
        raise ValueError
    return value
