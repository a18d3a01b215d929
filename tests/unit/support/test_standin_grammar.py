# SPDX-License-Identifier: MIT
"""The stand-in's option grammar against what the real parsers were seen to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.hypervisor import clap
from tests.support.hypervisor.clap import UsageError
from tests.support.hypervisor.grammar import OptionError
from tests.support.hypervisor.options import document, option
from tests.support.hypervisor.validate import ValidationError, validate
from tests.support.hypervisor.vmconfig import attach, complete

_DATA = Path(__file__).parents[2] / "data"
_PLATFORMS = json.loads((_DATA / "platform-option-vectors.json").read_text(encoding="utf-8"))["cases"]
_COMMANDS = [
    case
    for case in json.loads((_DATA / "microvm-nix-commands.json").read_text(encoding="utf-8"))["cases"]
    if "argv" in case
]
_UNDERSTOOD = [case for case in _COMMANDS if "cloud_hypervisor_refuses" not in case]


def _version(case: dict[str, Any]) -> tuple[int, int]:
    major, minor = case["cloud_hypervisor_version"].split(".")
    return int(major), int(minor)


def _configuration(arguments: list[str], version: tuple[int, int]) -> Any:  # noqa: ANN401 (JSON)
    given = document(clap.parse(arguments), version)
    config = complete(given)
    nets = zip(config.get("net", ()), given.get("net", ()), strict=True)
    if attached := [attach(net, each.get("fds", [])) for net, each in nets]:
        config["net"] = attached
    validate(config)
    return config


@pytest.mark.parametrize(("column", "version"), [("v47", (46, 0)), ("v47", (47, 0)), ("v48", (53, 0))])
def test_platform_values_are_read_as_each_release_reads_them(column: str, version: tuple[int, int]) -> None:
    """All 252 values of --platform give what the real parser gave, or are refused where it refused."""
    wrong = []
    for case in _PLATFORMS:
        try:
            found = option("platform", case["option"], version)
            got = {"oem_strings": found.get("oem_strings"), "uuid": found.get("uuid")}
        except OptionError:
            got = {"error": "refused"}
        if got != case[column] and not ("error" in got and "error" in case[column]):
            wrong.append((case["option"], case[column], got))
    assert len(_PLATFORMS) == 252
    assert wrong == []


@pytest.mark.parametrize(
    "case", [case for case in _UNDERSTOOD if "vm_config" in case], ids=lambda case: case["name"]
)
def test_commands_of_microvm_nix_become_the_documents_that_stand_for_them(case: dict[str, Any]) -> None:
    """A command line of microvm.nix means the VM that the real parser was seen to make of it."""
    config = _configuration(case["argv"][1:], _version(case))
    added = case.get("add_net") or []
    expected = complete(case["vm_config"])
    if added:
        nets = [attach(complete({"net": [each["config"]]})["net"][0], each["fds"]) for each in added]
        expected["net"] = [*expected.get("net", ()), *nets]
    validate(expected)
    assert config == expected


@pytest.mark.parametrize(
    "case", [case for case in _COMMANDS if case not in _UNDERSTOOD], ids=lambda case: case["name"]
)
def test_what_the_real_one_refuses_is_refused(case: dict[str, Any]) -> None:
    """A command line that the real parser refuses is refused."""
    with pytest.raises((UsageError, OptionError, ValidationError)):
        _configuration(case["argv"][1:], _version(case))


# The texts are those of cloud-hypervisor v53.0.
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--kernel", "k", "--platform", "a", "--platform=b"],
            "the argument '--platform <platform>' cannot be used multiple times",
        ),
        (["--bogus"], "unexpected argument '--bogus' found"),
        (["--kernel", "k", "--plat", "x"], "unexpected argument '--plat' found"),
        (["--kernel", "k", "stray"], "unexpected argument 'stray' found"),
        (["--kernel", "k", "-x"], "unexpected argument '-x' found"),
        (
            ["--kernel", "k", "--platform"],
            "a value is required for '--platform <platform>' but none was supplied",
        ),
        (
            ["--kernel", "k", "--platform", "a", "--platform"],
            "a value is required for '--platform <platform>' but none was supplied",
        ),
        (
            ["--kernel", "k", "--watchdog=1"],
            "unexpected value '1' for '--watchdog' found; no more were expected",
        ),
        (
            ["--platform", "uuid=x", "--api-socket", "s"],
            (
                "the following required arguments were not provided:\n"
                "  <--firmware <firmware>|--kernel <kernel>>"
            ),
        ),
        (
            ["--api-socket", "s", "--seccomp", "maybe"],
            "invalid value 'maybe' for '--seccomp <seccomp>'\n  [possible values: true, false, log, errno]",
        ),
    ],
)
def test_usage_errors_read_as_the_real_ones(arguments: list[str], text: str) -> None:
    """What clap refuses is refused with clap's words."""
    with pytest.raises(UsageError) as caught:
        clap.parse(arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("platform", 'oem_strings=[a"b]', 'invalid syntax: oem_strings=[a"b]'),
        ("platform", "foo=1", "unknown option: foo"),
        ("platform", "oem_strings=[b,a=[x]]", "unable to convert [b,a=[x]] for oem_strings"),
        ("memory", "size=abc", "unable to convert abc for size"),
    ],
)
def test_option_errors_print_the_value_as_the_real_ones_do(name: str, value: str, text: str) -> None:
    """A value that cannot be parsed stands in the error: the vice that launchers must keep secrets from."""
    with pytest.raises(OptionError) as caught:
        option(name, value, (53, 0))
    assert str(caught.value) == text
