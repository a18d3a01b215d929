# SPDX-License-Identifier: MIT
"""Nix without a store: parses files, and evaluates the project's modules on stubs of what surrounds them.

With ``CREDFERRY_NIXPKGS_LIB`` naming the ``lib`` directory of a nixpkgs, its module system is used in place
of the stub of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.host import patience

STUBS = Path(__file__).resolve().parent
CHECKOUT = STUBS.parents[2]

_SECONDS = 60


class NixError(Exception):
    """Nix refused the expression; the text is what it says."""


def missing() -> str | None:
    """What lacks for `Nix` to work, or nothing."""
    return (
        None if shutil.which("nix-instantiate") else "no nix-instantiate (run tests/support/bootstrap full)"
    )


@dataclass(frozen=True)
class Nix:
    """An evaluator that writes nowhere but below ``directory``."""

    directory: Path

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 (whatever the expression's JSON is)
        """The value of an expression, in which ``t`` is the test's default.nix. Raises `NixError`."""
        lib = os.environ.get("CREDFERRY_NIXPKGS_LIB")
        stubs = f"import {STUBS} {{ {f'lib = import {Path(lib).resolve()};' if lib else ''} }}"
        return json.loads(
            self._run("--eval", "--strict", "--json", "-E", f"let t = {stubs}; in {expression}")
        )

    def parse(self, file: Path) -> None:
        """Parse a file. Raises `NixError`."""
        self._run("--parse", str(file))

    def _run(self, *arguments: str) -> str:
        # Every place that Nix would take from its installation, or make there, is in the directory.
        places = {
            f"NIX_{name}_DIR": str(self.directory / name.lower())
            for name in ("CONF", "DATA", "LOG", "STATE", "STORE")
        }
        finished = subprocess.run(
            ["nix-instantiate", "--store", "dummy://", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS * patience(),
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "NIX_CONFIG": "build-users-group =",
                "NIX_PATH": "",
                **places,
            },
        )
        if finished.returncode != 0:
            raise NixError(finished.stderr)
        return finished.stdout


def to_toml(table: dict[str, Any]) -> str:
    """A configuration as TOML, one key a line: JSON's strings, numbers and arrays are TOML's."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in table.items())


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
