# SPDX-License-Identifier: MIT
"""The protections that SECURITY.md names: how each is taken out, and the tests that must fail then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that stands exactly once in a file, and what takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection. Without it, each of these tests must fail.

    ``tests`` are SECURITY.md's: each test that the page names stands here at least once.
    """

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


PROTECTIONS: Final = (
    Protection(
        "the launcher refuses another VM's credentials",
        (
            Edit(
                "launcher/plan.py",
                "if named is not None and named != delivered.manifest.vm:",
                "if False:",
            ),
        ),
        (
            "tests/unit/launcher/test_main.py::test_another_vms_credentials_are_refused_without_being_told_the_name",
        ),
    ),
    Protection(
        "plaintext stays out of argument vectors",
        (
            Edit(
                "launcher/plan.py",
                "if delivery.channel is Channel.COMMAND and not delivery.plaintext_in_argv:",
                "if False:",
            ),
        ),
        (
            "tests/unit/launcher/test_process.py::test_the_vm_is_created_over_the_api_and_nothing_secret_is_in_an_argument_vector",
        ),
    ),
    Protection(
        "a powerful name must be allowed",
        (
            Edit(
                "launcher/oem.py",
                "if is_powerful_name(name) and name not in delivery.allowed_names:",
                "if False:",
            ),
        ),
        ("tests/unit/agent/test_config.py::test_powerful_names_can_be_allowed",),
    ),
)
