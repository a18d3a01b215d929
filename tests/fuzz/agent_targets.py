# SPDX-License-Identifier: MIT
"""The agent's parsers: sealed credentials, configuration, the journal's records, its own state."""

from __future__ import annotations

import base64
import contextlib
import functools
import math
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from credferry.agent.audit import records
from credferry.agent.audit import writer as journal
from credferry.agent.audit.events import Event
from credferry.agent.config.loading import parse
from credferry.agent.errors import ConfigurationError, KeyFileError, SealError
from credferry.agent.rollout import nixos
from credferry.agent.rollout.pacing import restart_order
from credferry.agent.sealing.credential import is_valid_name, seal, unseal
from credferry.agent.sealing.keys import CredentialKey, hashed_machine_id
from credferry.agent.store.generations import Store
from credferry.agent.store.record_files import WORKED_MAX
from credferry.launcher.handoff import is_credential_name, is_vm_name
from tests.fuzz.target import MARKER, Target, check, check_silent, directory

if TYPE_CHECKING:
    from systemd.journal import Reader

KEY: Final = CredentialKey(b"fuzz")
NAME: Final = "credferry_value.api-key"
NOW: Final = 1_800_000_000_000_000
_HEADER: Final = bytes.fromhex("5a1c6a86df9d4096b1d5a65e0862f19a") + struct.pack("<IIII", 32, 1, 12, 16)
_IV: Final = bytes(12)
_METADATA: Final = struct.Struct("<QQI")
_EDIT: Final = struct.Struct("<HB")
_FIELD: Final = re.compile(r"_?[A-Z][A-Z0-9_]{0,63}")


def sealed(data: bytes) -> None:
    """A sealed credential, as anybody may leave it where PID 1 or the agent look for one."""
    _unseal(data)


def sealed_inside(data: bytes) -> None:
    """What is inside of a sealed credential, under the right key: made by another program, or an old one."""
    header = _HEADER + _IV + bytes(4)
    blob = header + AESGCM(KEY.aes_key).encrypt(_IV, data, header)
    value = _unseal(base64.b64encode(blob))
    if value is None:
        return
    assert data.endswith(value), "the value is not what was sealed"
    timestamp, not_after, size = _METADATA.unpack_from(data)
    name = data[_METADATA.size : _METADATA.size + size]
    assert name in {b"", NAME.encode()}, "it was sealed under another name"
    assert not_after >= NOW, "it has expired"
    assert timestamp == 2**64 - 1 or timestamp < not_after, "its times are out of order"


def sealed_altered(data: bytes) -> None:
    """A sealed credential with bytes changed, by position and difference: only the unchanged one opens."""
    whole = bytearray(base64.b64decode(_sealed_blob()))
    for position, difference in _EDIT.iter_unpack(data[: len(data) // _EDIT.size * _EDIT.size]):
        whole[position % len(whole)] ^= difference
    value = _unseal(base64.b64encode(whole))
    assert (value is not None) == (bytes(whole) == base64.b64decode(_sealed_blob())), "an altered one opened"


@functools.cache
def _sealed_blob() -> bytes:
    return seal(MARKER.encode(), name=NAME, key=KEY, timestamp=NOW - 1)


def _unseal(blob: bytes) -> bytes | None:
    try:
        value = unseal(blob, name=NAME, key=KEY, now=NOW)
    except SealError as error:
        # The one thing of a blob that a refusal may show is the name inside.
        check_silent(SealError(re.sub(r"under the name '[ -~]{1,255}'", "", str(error)), hint=error.hint))
        return None
    again = seal(value, name=NAME, key=KEY, timestamp=NOW - 1)
    assert unseal(again, name=NAME, key=KEY, now=NOW) == value, "it does not open again"
    return value


def key_file(data: bytes) -> None:
    """A credential key file, and the machine id that it must be made for."""
    try:
        assert MARKER not in repr(CredentialKey.from_file_content(data)), "the key shows itself"
    except KeyFileError as error:
        check_silent(error)
    with contextlib.suppress(KeyFileError, UnicodeDecodeError):
        assert len(hashed_machine_id(data.decode("ascii"))) == 16


def configuration(data: bytes) -> None:
    """The configuration file: what is taken keeps every bound, and one error tells of the rest."""
    try:
        config = parse(data, Path("/etc/credferry/config.toml"))
    except ConfigurationError as error:
        helps = str(error).startswith("/etc/credferry/config.toml: ") and error.hint
        check(helps, "the error names no file, or no remedy")
        return
    assert set(restart_order(config.vms)) == set(config.vms)
    for table in (config.source, config.rollout):
        for name in (field.name for field in msgspec.structs.fields(type(table))):
            held = getattr(table, name)
            assert not isinstance(held, float) or math.isfinite(held), f"{name} is no time"
    units = [vm.unit for vm in config.vms.values()]
    assert len(set(units)) == len(units), "two VMs have one unit"
    for name, vm in config.vms.items():
        assert is_vm_name(name)
        assert vm.credentials, "a VM has no credential"
        assert all(is_credential_name(each) and is_valid_name(each) for each in vm.credentials)
        for each, credential in vm.credentials.items():
            vm.kind(each)
            parts = (credential.secret or "x").split("/")
            assert not {"", ".", ".."} & set(parts), "a secret leads out of the source"


def journal_records(data: bytes) -> None:
    """The audit, read from a journal to which anybody can write; entries are lines of ``FIELD=value``."""
    entries = [_entry(block) for block in data.split(b"\n\n")[:16]]
    for number, entry in enumerate(entries):
        entry["CREDFERRY_RUN"] = str(number)  # tells which entry a record is made of
    by_agent = [entry for entry in entries if _is_agents(entry)]
    for record in records.trusted(entries):
        sender = entries[int(record.run)]
        assert sender["MESSAGE_ID"] == UUID(record.event.value)
        assert record.time.utcoffset() is not None
        if record.event not in records.FROM_LAUNCHER:
            assert _is_agents(sender), "somebody else spoke for the agent"
            continue
        units = {f"microvm@{record.vm}.service"}
        for entry in by_agent:
            named = entry.get("OBJECT_SYSTEMD_UNIT", "")
            units |= {
                each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)
            }
        assert sender.get("_SYSTEMD_UNIT") in units, "another unit spoke for the VM's launcher"


def _is_agents(entry: dict[str, Any]) -> bool:
    return entry.get("_UID") == 0 or entry.get("_SYSTEMD_UNIT") in {
        "credferry.service",
        "credferry-seal.service",
    }


def _entry(block: bytes) -> dict[str, Any]:
    """An entry as python-systemd has it, from lines; no sender can give what begins with an underscore."""
    fields: dict[str, Any] = {"__REALTIME_TIMESTAMP": 1_700_000_000_000_000}
    for line in block.split(b"\n"):
        key, equals, value = line.partition(b"=")
        name = key.decode("ascii", "replace")
        if not equals or not _FIELD.fullmatch(name):
            continue
        if name not in fields:
            fields[name] = value
        elif not name.startswith("_"):
            held = fields[name]
            fields[name] = [*held, value] if isinstance(held, list) else [held, value]
    return dict(_reader()._convert_entry(fields))


def locks(data: bytes) -> None:
    """The kernel's list of locks, in which a NixOS switch shows: it is looked through, whatever it holds."""
    if not data.isascii():  # the kernel's is
        return
    path = directory("locks") / "list"
    path.write_bytes(data)
    status = path.stat()
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}".encode()
    assert not nixos.is_locked(path, (path,)) or name in data, "a lock on another file was taken for it"
    held = b"9999: FLOCK  ADVISORY  WRITE 1 " + name + b" 0 EOF\n"
    path.write_bytes(data + b"\n" + held)
    assert nixos.is_locked(path, (path,)), "a lock behind other lines was not found"


def state_files(data: bytes) -> None:
    """What the agent remembers of a VM: a file that a crash or a full disk has spoiled counts as none."""
    store = Store(directory(), KEY)
    store.vm_directory("web").mkdir(parents=True, exist_ok=True)
    for name in ("assumed.json", "rollout.json", "restarts.json", "last.json", "slot.json", "worked.json"):
        store.vm_directory("web").joinpath(name).write_bytes(data)
    assert all(math.isfinite(moment) for moment in store.restarts("web"))
    assert len(store.worked("web")) <= WORKED_MAX
    for held in (store.assumed("web"), store.attempt("web"), store.last_turn("web"), store.claim("web")):
        if held is None:
            continue
        again = msgspec.json.decode(msgspec.json.encode(held), type=type(held))
        assert again == held, "it is not the same once it is written"


def audit_head(data: bytes) -> None:
    """The kept head of the audit's chain: what is taken for one can be sent, and the chain go on from it."""
    store = Store(directory(), KEY)
    store.state.joinpath("audit.json").write_bytes(data)
    head = journal.Audit(store)._head()
    assert 0 <= head.sequence < 2**63 - 1, "the sequence cannot go on"
    assert all(re.match("[A-Z0-9_]+=", each) for each in head.fields), "journald would refuse it"
    assert msgspec.json.decode(msgspec.json.encode(head), type=type(head)) == head


@functools.cache
def _reader() -> Reader:
    return records.reader(directory("journal"))


_EVENT_WORDS: Final = tuple(f"MESSAGE_ID={event.value}" for event in Event)

TARGETS: Final = (
    Target("sealed", sealed),
    Target("sealed-inside", sealed_inside, (NAME,)),
    Target("sealed-altered", sealed_altered, length_max=256),
    Target("key-file", key_file, length_max=4200),
    Target(
        "configuration",
        configuration,
        (
            *(
                "[source]",
                "[rollout]",
                "[vms.web]",
                "[vms.web.credentials]",
                "[vms.db]",
                "\n",
                " = ",
                "true",
                '"',
            ),
            *(
                "path",
                "follow_links",
                "quiet_seconds",
                "resync_seconds",
                "attempts",
                "policy",
                "after",
                "unit",
            ),
            *("channel", "guest_systemd", "guest_key", "initrd", "plaintext_in_argv", "allow_names"),
            *(
                "API_KEY = { secret = ",
                "text = ",
                "required = ",
                "seal = ",
                "'''",
                "inf",
                "nan",
                "0x",
                "1e9",
            ),
        ),
    ),
    Target(
        "journal",
        journal_records,
        (
            *_EVENT_WORDS,
            *(
                "CREDFERRY_VM=web",
                "CREDFERRY_GENERATION=",
                "CREDFERRY_RUN=",
                "CREDFERRY_FINGERPRINT=a:b",
                "\n\n",
            ),
            *(
                "CREDFERRY_HASH=",
                "OBJECT_SYSTEMD_UNIT=",
                "_SYSTEMD_UNIT=microvm@web.service",
                "_UID=0",
                "_UID=1",
            ),
            *("_SOURCE_REALTIME_TIMESTAMP=", "COREDUMP_TIMESTAMP=", "MESSAGE=", "PRIORITY="),
        ),
    ),
    Target("locks", locks, ("FLOCK", "POSIX", "ADVISORY", "->", "EOF", "00:00:1"), length_max=256),
    Target(
        "state-files",
        state_files,
        (
            '{"',
            '":',
            '"digest"',
            '"outcome"',
            '"failed"',
            '"reason"',
            '"previous"',
            '"invocation_id"',
            "\\u",
        ),
    ),
    Target("audit-head", audit_head, ('{"', '":', '"sequence"', '"hash"', '"fields"', '["A=b"]', "\\u")),
)
