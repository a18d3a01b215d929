# SPDX-License-Identifier: MIT
"""The launcher over wide inputs: no value is shown, and nothing ends in a traceback."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from credferry.launcher import plan as plans
from credferry.launcher.__main__ import main
from credferry.launcher.credentials import Credential, Delivered
from credferry.launcher.errors import LaunchError
from credferry.launcher.handoff import (
    LAUNCHED,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    unit_credential,
    value_file,
)
from credferry.launcher.hypervisor import cmdline, releases, schema, vmconfig
from credferry.launcher.hypervisor.options import Grammar, OptionError, parse, plain, render
from credferry.launcher.spec import command as speccommand
from credferry.launcher.spec import reading as specs

CANARY = b"canary-2b6e71"
LEAKS = (CANARY.decode(), base64.b64encode(CANARY).decode(), base64.b64encode(CANARY).decode().rstrip("="))
SEALED = base64.b64encode(
    bytes.fromhex("5a1c6a86df9d4096b1d5a65e0862f19a 20000000 01000000 0c000000 10000000")
    + bytes(16)
    + CANARY * 16
)
MAJORS = st.integers(releases.OLDEST, 54)

KEYS = st.sampled_from(sorted({key for keys in schema.OPTIONS.values() for key in keys}))
SHAPES = st.one_of(
    st.text(max_size=12),
    st.text(alphabet=st.sampled_from('ab,=:[]@"- \n\t019KMG.x/\\é'), max_size=16),
    st.integers(-5, 1 << 70).map(str),
    st.sampled_from(["on", "off", "true", "[1-3,5]", "[0@[1,2]]", "1:2:1:1", "0xe9", "512M", "tty", "fd=3"]),
)
PIECES = st.one_of(st.tuples(KEYS, SHAPES).map("=".join), SHAPES)
VALUES = st.lists(PIECES, max_size=4).map(",".join)
NAMES = st.sampled_from(
    sorted({*cmdline.SWITCHES, *cmdline.SINGLE, *cmdline.LISTS, *cmdline.OPTIONAL_VALUE, "gpu", "x"})
)
WORDS = st.one_of(
    st.tuples(NAMES, VALUES).map(lambda pair: [f"--{pair[0]}", pair[1]]),
    st.tuples(NAMES, VALUES).map(lambda pair: [f"--{pair[0]}={pair[1]}"]),
    NAMES.map(lambda name: [f"--{name}"]),
    st.sampled_from([["-v"], ["-vvv"], ["--"], ["-x"], ["--kernel", "/k"], ["\udcff"]]),
    VALUES.map(lambda value: [value]),
)
ARGV = st.lists(WORDS, max_size=6).map(lambda lists: ["--kernel=/k", *(word for ws in lists for word in ws)])
OWN = st.one_of(
    st.sampled_from(["--real=/does/not/exist", "--explain", "--check", "--vm=web", "--", "--spec=x"]),
    st.text(max_size=6).map(lambda text: text.replace("\0", "")),
)
DELIVERIES = st.builds(
    Delivery,
    channel=st.sampled_from(LAUNCHED),
    guest_systemd=st.sampled_from([252, 257]),
    plaintext_in_argv=st.booleans(),
    initrd=st.booleans(),
)


@given(st.dictionaries(st.sampled_from(["path", "serial", "id", "b"]), SHAPES), st.sampled_from(Grammar))
def test_values_of_every_shape_come_back(values: dict[str, str], grammar: Grammar) -> None:
    """What is rendered is parsed to the same values, or was refused; since v48, few things have to be."""
    try:
        rendered = render(values, grammar)
    except OptionError:
        # A list's own brackets aside, quotes hide all but what is trimmed: and an empty value is none.
        hard = [v for v in values.values() if v.startswith("[") and v.endswith("]")]
        assert grammar is Grammar.UP_TO_47 or hard
        return
    assert {key: plain(value, grammar) for key, value in parse(rendered, values, grammar).items()} == values


@given(NAMES, VALUES, MAJORS)
def test_an_option_is_converted_or_refused(name: str, value: str, major: int) -> None:
    """Whatever stands there, the document is JSON, or the refusal is the launcher's own, in one line."""
    error = ""
    try:
        options = cmdline.parse(["--kernel", "/k", f"--{name}={value}"])
        vmconfig.convert(options, major)
    except LaunchError as refused:
        error = str(refused)
    assert "\n" not in error


@given(ARGV, MAJORS, DELIVERIES, st.sampled_from(Kind))
def test_a_plan_shows_no_value(argv: list[str], major: int, delivery: Delivery, kind: Kind) -> None:
    """Neither in what is shown of a start, nor in a refusal; in the api channel in no argument at all."""
    value = Secret(SEALED if kind is Kind.SEALED else CANARY)
    manifest = Manifest("web", 1, "a" * 64, "b" * 32, delivery, (ManifestEntry("K", kind, "0" * 16),))
    delivered = Delivered(manifest, (Credential("K", kind, value),))
    try:
        plan = plans.make(plans.Request("/ch", tuple(argv), major, "x86_64"), delivered)
    except LaunchError as error:
        shown = f"{error} {error!r}"
    else:
        shown = f"{plan.start.shown} {plan.start.document} {plan!r}"
        if delivery.channel is Channel.API or not delivery.is_oem(kind):
            shown += " ".join(plan.start.words)
    for leak in LEAKS:
        assert leak not in shown


@given(
    st.lists(OWN, max_size=4),
    ARGV,
    st.binary(max_size=60),
    st.booleans(),
)
def test_the_command_ends_in_one_line_whatever_it_is_given(
    own: list[str], argv: list[str], manifest: bytes, good: bool
) -> None:
    """A status, at most one line on standard error, no traceback, no value: with any manifest, too."""
    whole = Manifest("web", 1, "a" * 64, "b" * 32, Delivery(), (ManifestEntry("K", Kind.PLAIN, "0" * 16),))
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / unit_credential("manifest")).write_bytes(whole.to_bytes() if good else manifest)
        (Path(directory) / unit_credential(value_file("K"))).write_bytes(CANARY)
        with (
            mock.patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": directory}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.suppress(SystemExit),
        ):
            main([*own, "--explain", "--real=/does/not/exist", "--hypervisor-version=53", "--", *argv])
    assert "internal error" not in err.getvalue()
    assert err.getvalue().count("\n") <= 1
    for leak in LEAKS:
        assert leak not in out.getvalue() + err.getvalue()


TOML = st.recursive(
    st.one_of(st.booleans(), st.integers(-1, 1 << 40), st.text(max_size=6), SHAPES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5) | KEYS, inner, max_size=3)
    ),
    max_leaves=6,
)
SECTIONS = ("cpus", "memory", "disks", "shares", "networks", "vsock", "platform", "devices", "options")
TABLES = st.fixed_dictionaries(
    {"name": st.just("web"), "kernel": st.just("/k")}, optional=dict.fromkeys(SECTIONS, TOML)
)


@given(TABLES, MAJORS)
def test_a_spec_is_a_vm_or_refused(tables: dict[str, object], major: int) -> None:
    """Whatever a file holds: arguments that parse, or one of the launcher's own refusals."""
    error = ""
    try:
        spec = specs.of_tables(tables, Path("vm.toml"))
        argv = speccommand.arguments(spec, Grammar.of(major))
        vmconfig.convert(cmdline.parse(argv), major)
    except LaunchError as refused:
        error = str(refused)
    assert "\n" not in error
