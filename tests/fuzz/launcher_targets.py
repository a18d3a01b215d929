# SPDX-License-Identifier: MIT
"""The launcher's parsers of command lines, specs and what the agent hands over."""

from __future__ import annotations

import json
import os
import re
import tomllib
from typing import TYPE_CHECKING, Final

from credferry.launcher import arguments, explain, oem, plan
from credferry.launcher.credentials import Credential, Delivered
from credferry.launcher.errors import LaunchError
from credferry.launcher.handoff import (
    Channel,
    Delivery,
    HandoffError,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
    is_credential_name,
    is_vm_name,
)
from credferry.launcher.hypervisor import schema, version
from credferry.launcher.hypervisor.options import (
    Grammar,
    OptionError,
    merge_oem_strings,
    oem_strings,
    parse,
    plain,
    render,
    string_list,
    words,
)
from credferry.launcher.spec import command as speccommand
from credferry.launcher.spec import reading as spec
from tests.fuzz.target import MARKER, Target, check_silent, directory, keys, leaves, parsed, shows_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAJORS: Final = tuple(range(46, 55))
_VALUE: Final = Secret(MARKER.encode())
_SEALED: Final = Secret(b"Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABAAAAAAAQIDBAUGBwgJCgsAAAAA" + b"A" * 64)
_STRINGS: Final = ("io.systemd.credential.binary:API_KEY=c2VjcmV0", "io.systemd.credential:TLS=QUJD+/==")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_ELEMENTS_MAX: Final = 1 << 17


def manifest(data: bytes) -> None:
    """A manifest: taken is only what could have been written, and written again it is the same."""
    _handed_over(Manifest.from_bytes, data)


def stamp(data: bytes) -> None:
    """A stamp, which the VM's user may write: taken is only what could have been written."""
    _handed_over(Stamp.from_bytes, data)


def _handed_over(load: Callable[[bytes], Manifest | Stamp], data: bytes) -> None:
    try:
        found = load(data)
    except HandoffError as error:
        check_silent(error)
        return
    again = found.to_bytes()
    assert load(again) == found, "it is not the same once it is written"
    assert is_vm_name(found.vm)
    names = [] if isinstance(found, Stamp) else [entry.name for entry in found.credentials]
    assert all(is_credential_name(name) for name in names)
    assert len(set(names)) == len(names), "a credential is there twice"
    read = json.loads(data)
    if isinstance(found, Manifest):
        read["delivery"].setdefault("initrd", False)  # manifests sealed before there was one have none
    else:
        read.setdefault("room", 0)  # likewise
    # As text, since True == 1 == 1.0.
    assert json.dumps(read, sort_keys=True) == json.dumps(json.loads(again), sort_keys=True), (
        "it was taken, though nobody would write it so"
    )


def platform(data: bytes) -> None:
    """A ``--platform``, in both grammars: strings put into it leave all that was there as it was."""
    text = os.fsdecode(data)
    for grammar in Grammar:
        try:
            before = oem_strings(text, grammar)
            merged = merge_oem_strings(text, _STRINGS, grammar)
        except OptionError as error:
            check_silent(error)
            continue
        assert oem_strings(merged, grammar) == [*before, *_STRINGS], "strings are not what they were"
        others = [pair for pair in words(text, grammar) if pair[0] != "oem_strings"]
        assert [pair for pair in words(merged, grammar) if pair[0] != "oem_strings"] == others


def option(data: bytes) -> None:
    """An option of any kind, in both grammars: what is read of it can be written, and reads the same."""
    text = os.fsdecode(data)
    for grammar in Grammar:
        try:
            pairs = words(text, grammar)
            values = parse(text, {key for key, _ in pairs}, grammar)
            wanted = {key: plain(value, grammar) for key, value in values.items()}
            again = parse(render(wanted, grammar), wanted, grammar)
            string_list(text, grammar)
        except OptionError as error:
            check_silent(error)
            continue
        assert {key: plain(value, grammar) for key, value in again.items()} == wanted


_CONVERTERS: Final = [
    (name, key, convert)
    for name, table in sorted(schema.OPTIONS.items())
    for key, (_, convert) in sorted(table.items())
]


def option_value(data: bytes) -> None:
    """The value of any option's key: it becomes JSON of a bounded size, or is refused and not shown."""
    if not data:
        return
    _, _, convert = _CONVERTERS[data[0] % len(_CONVERTERS)]
    text = os.fsdecode(data[1:])
    for grammar in Grammar:
        try:
            made = convert(text, grammar)
        except ValueError as error:
            check_silent(error)
            continue
        json.dumps(made)
        assert sum(1 for _ in leaves(made)) <= _ELEMENTS_MAX, "a few bytes became very many"


def command_line(data: bytes) -> None:
    """A whole start: arguments that NULs divide, after one byte each for release and credentials."""
    if len(data) < 2:
        return
    request = plan.Request(
        real="/usr/bin/cloud-hypervisor",
        argv=tuple(os.fsdecode(word) for word in data[2:].split(b"\0")),
        major=MAJORS[data[0] % len(MAJORS)],
        machine="x86_64",
    )
    delivered = _DELIVERED[data[1] % len(_DELIVERED)]
    try:
        made = plan.make(request, delivered)
    except LaunchError as error:
        _check_refusal(error, request.argv)
        return
    shown = explain.render(made, real=request.real, version="53.0", events_fd=100)
    assert _given(request.argv) or not shows_value(repr(made), shown), "the plan shows a value"
    for endpoint in (made.start.api, made.events):
        assert endpoint is None or endpoint.fd is None or -1 <= endpoint.fd < 1 << 31, "it is no descriptor"
    if made.start.body is not None:
        document = json.loads(made.start.body.reveal())
        _check_strings(document.get("platform", {}).get("oem_strings", []), delivered)
    elif delivered is not None:
        at = made.start.words.index("--platform") if "--platform" in made.start.words else None
        grammar = Grammar.of(request.major)
        _check_strings([] if at is None else oem_strings(made.start.words[at + 1], grammar), delivered)


def _check_strings(found: list[str], delivered: Delivered | None) -> None:
    if delivered is None:
        return
    delivery = delivered.manifest.delivery
    wanted = [each.string.reveal().decode() for each in delivered.credentials if delivery.is_oem(each.kind)]
    assert found[len(found) - len(wanted) :] == wanted, "the credentials are not what cloud-hypervisor reads"


def _check_refusal(error: LaunchError, argv: Sequence[str]) -> None:
    """Names of options and of their keys may be shown, and nothing else of a command line."""
    others = [word for at, word in enumerate(argv) if at == 0 or argv[at - 1] != "--platform"]
    if not _given(others):
        check_silent(error)


def _given(words: Sequence[str]) -> bool:
    return any(shows_value(word) for word in words)


def _delivered(delivery: Delivery, *credentials: Credential) -> Delivered:
    entries = tuple(ManifestEntry(each.name, each.kind, "0" * 16) for each in credentials)
    return Delivered(Manifest("web", 7, "ab" * 32, "cd" * 16, delivery, entries), credentials)


_PLAIN: Final = Credential("API_KEY", Kind.PLAIN, _VALUE)
_TEXT: Final = Credential("ENVIRONMENT", Kind.TEXT, Secret(b"test"))
_TLS: Final = Credential("TLS", Kind.SEALED, _SEALED)
_DELIVERED: Final = (
    None,
    _delivered(Delivery(), _PLAIN, _TEXT, _TLS),
    _delivered(Delivery(channel=Channel.COMMAND), _TEXT, _TLS),
    _delivered(Delivery(channel=Channel.COMMAND, plaintext_in_argv=True), _PLAIN),
    _delivered(Delivery(initrd=True), _PLAIN, _TLS),
)


def own_arguments(data: bytes) -> None:
    """The launcher's own arguments, divided by NULs."""
    argv = [os.fsdecode(word) for word in data.split(b"\0")]
    try:
        found = arguments.parse(argv)
    except LaunchError as error:
        check_silent(error)
        return
    assert found.real or found.spec is not None or (found.check and found.version)
    assert found.vm is None or is_vm_name(found.vm)


def credential(data: bytes) -> None:
    """What is said to be sealed for a guest: it must be one string that no grammar takes apart."""
    held = Credential("TLS", Kind.SEALED, Secret(data))
    try:
        oem.check([held], [], Delivery(guest_systemd=257))
    except LaunchError as error:
        check_silent(error, held.redacted, repr(held))
        return
    assert _BASE64.fullmatch(data), "it is not Base64 on one line"
    text = held.string.reveal().decode()
    for grammar in Grammar:
        assert oem_strings(merge_oem_strings("", [text], grammar), grammar) == [text]


def vm_spec(data: bytes) -> None:
    """A VM's spec: it becomes arguments that say what the file says, or one error names the key."""
    path = directory("spec") / "vm.toml"
    path.write_bytes(data)
    try:
        found = spec.load(path)
    except LaunchError as error:
        _check_spec_refusal(error, data)
        return
    for major in (MAJORS[0], MAJORS[-2]):
        try:
            argv = tuple(speccommand.arguments(found, Grammar.of(major)))
            assert all(isinstance(word, str) for word in argv)
            plan.make(plan.Request("/usr/bin/cloud-hypervisor", argv, major, "x86_64"), _DELIVERED[1])
        except LaunchError as error:
            _check_spec_refusal(error, data)


def _check_spec_refusal(error: LaunchError, data: bytes) -> None:
    assert str(error).isprintable(), "the error has characters that a terminal would obey"
    tables = parsed(tomllib.loads, data)
    if tables is None:
        shown = bool(re.search(r"Duplicate inline table key|Cannot (declare|mutate|overwrite)", str(error)))
    else:
        # What stands in further arguments may be the name of an option.
        shown = any(MARKER in key for key in keys(tables)) or "options" in tables
    if not shown:
        check_silent(error)


def release(data: bytes) -> None:
    """What a binary says of its version, or a file remembers of it."""
    found = version.parse(data.decode(errors="replace"))
    if found is not None:
        assert 0 <= found[1] <= 9999
        assert version.parse(found[0]) == found


_OPTION_WORDS: Final = (
    *(f"--{name}" for name in sorted(schema.OPTIONS)),
    *(
        "--kernel\0/k",
        "--initramfs\0/i",
        "--api-socket\0",
        "--event-monitor\0fd=",
        "--watchdog",
        "path=",
        "fd=",
    ),
)
_KEY_WORDS: Final = tuple(sorted({f"{key}=" for table in schema.OPTIONS.values() for key in table}))
GRAMMAR_WORDS: Final = (
    "oem_strings=[",
    '""',
    '"',
    "[",
    "]",
    ",",
    "=",
    "@",
    "]]",
    "[[",
    "\u00a0",
    "on",
    "1-3",
)
COMMAND_WORDS: Final = (*_OPTION_WORDS, *_KEY_WORDS, *GRAMMAR_WORDS, MARKER)
_JSON_WORDS: Final = ('{"', '":', "true", "null", "[]", "{}", "1.0", "\\u0030", "1e1", "\\ud800")
_MANIFEST_WORDS: Final = tuple(
    f'"{word}"'
    for word in (
        *(
            "version",
            "vm",
            "generation",
            "digest",
            "run",
            "delivery",
            "credentials",
            "channel",
            "api",
            "command",
        ),
        *("guest_systemd", "plaintext_in_argv", "allowed_names", "initrd", "name", "kind", "fingerprint"),
        *("plain", "sealed", "text", "invocation_id", "other_oem_bytes", "room"),
    )
)
_SPEC_WORDS: Final = (
    *(
        "\n",
        " = ",
        '"',
        "[",
        "[[",
        "]]",
        "true",
        "'''",
        "\\u",
        "name",
        "kernel",
        "firmware",
        "initrd",
        "cmdline",
    ),
    *("cpus", "memory", "watchdog", "options", "[vsock]", "[platform]", "[[disks]]", "[[shares]]"),
    *("[[networks]]", "[[devices]]", "hypervisor", "api_socket", "serial", "console", "user", "addresses"),
    *(
        "notify",
        "source",
        "readonly",
        "boot",
        "size",
        "oem_strings = ",
        "path = ",
        "tag = ",
        "tap = ",
        "mac = ",
    ),
)

TARGETS: Final = (
    Target("manifest", manifest, (*_JSON_WORDS, *_MANIFEST_WORDS)),
    Target("stamp", stamp, (*_JSON_WORDS, *_MANIFEST_WORDS)),
    Target("platform", platform, (*GRAMMAR_WORDS, MARKER), length_max=128),
    Target("option", option, GRAMMAR_WORDS, length_max=256),
    Target("option-value", option_value, GRAMMAR_WORDS, length_max=512),
    Target("command-line", command_line, COMMAND_WORDS),
    Target(
        "own-arguments",
        own_arguments,
        (
            *("--real", "--spec", "--vm", "--hypervisor-version", "--explain", "--", "\0", "="),
            *("--tap-up", "--tap-down", "--virtiofsd", "--shutdown"),
        ),
        length_max=256,
    ),
    Target(
        "credential", credential, (_SEALED.reveal().decode(), "BYRp2vb1QySABUnaD46i+w=="), length_max=512
    ),
    Target("spec", vm_spec, (*_SPEC_WORDS, MARKER)),
    Target("release", release, ("cloud-hypervisor ", "v53.0"), length_max=64),
)
