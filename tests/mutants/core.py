# SPDX-License-Identifier: MIT
"""Has mutmut change core modules, one small change at a time, and counts what the fast tests notice.

A change of a message alone does not count: tests look for the words that matter, and not for every word.
Each other change that survives must stand in ``survivors.toml`` with a reason. It counts as not noticed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.mutants import copies

if TYPE_CHECKING:
    from collections.abc import Iterable

_AGENT: Final = "tests/unit/agent/test_{}.py"
_STORE: Final = "tests/unit/agent/store/test_{}.py"
_LAUNCHER: Final = "tests/unit/launcher/test_{}.py"


def _near(where: str, *names: str) -> tuple[str, ...]:
    return tuple(where.format(name) for name in names)


_ROLLOUT: Final = _near(_AGENT, "rollout", "pushes", "push_attempts", "push_decisions", "around", "pause")
_DECISION: Final = _near(_AGENT, "reconcile", "pushes", "push_decisions", "approval", "around", "directory")
MODULES: Final = {
    "agent/reconcile/desired.py": _near(_AGENT, "desired", "reconcile", "aging", "pairs", "sources"),
    "agent/reconcile/limits.py": _near(_AGENT, "desired", "reconcile"),
    "agent/rollout/pause.py": _near(_AGENT, "pause", "pace"),
    "agent/rollout/around.py": _near(_AGENT, "around"),
    "agent/store/evidence.py": _near(_AGENT, "evidence"),
    "agent/sealing/keys.py": _near(_AGENT, "keys", "sealing"),
    "agent/rollout/pacing.py": _near(
        _AGENT, "pace", "pushes", "push_attempts", "pause", "approval", "around"
    ),
    "agent/reconcile/decision.py": _DECISION,
    "agent/reconcile/observed.py": _DECISION,
    "agent/reconcile/way.py": _near(_AGENT, "reconcile", "pushes", "push_decisions"),
    "agent/rollout/jobs.py": _near(_AGENT, "rollout", "verdict", "push_attempts", "directory"),
    "agent/rollout/push_jobs.py": _near(_AGENT, "pushes", "push_jobs", "push_attempts"),
    "agent/rollout/pusher.py": _near(_AGENT, "pushes", "push_attempts"),
    "agent/rollout/restarter.py": _ROLLOUT,
    "agent/rollout/rollback.py": _ROLLOUT,
    "agent/rollout/rollout.py": _ROLLOUT,
    "agent/reconcile/sealer.py": _near(_AGENT, "sealer", "aging", "pairs"),
    "agent/daemon/hints.py": _near(_AGENT, "hints"),
    "agent/rollout/dispatcher.py": _near(_AGENT, "dispatch"),
    "agent/sealing/credential.py": _near(_AGENT, "sealing"),
    "agent/store/files.py": _near(_STORE, "files"),
    "agent/store/generations.py": _near(_STORE, "generations", "errors", "locks", "retention"),
    "agent/store/known.py": _near(_STORE, "known", "generations", "retention"),
    "agent/store/locks.py": _near(_STORE, "locks"),
    "agent/store/record_access.py": _near(_STORE, "record_files", "errors", "planted_files", "generations"),
    "agent/store/record_files.py": _near(_STORE, "record_files", "errors", "planted_files", "generations"),
    "agent/store/retention.py": _near(_STORE, "retention"),
    "agent/store/sealed_files.py": _near(
        _STORE, "sealed_files", "generations", "retention", "planted_files"
    ),
    "agent/untrusted.py": _near(_AGENT, "untrusted"),
    "agent/rollout/verdict.py": _near(_AGENT, "verdict"),
    "launcher/channels.py": _near(_LAUNCHER, "plan", "check", "main"),
    "launcher/credentials.py": _near(_LAUNCHER, "credentials", "main"),
    "launcher/handoff.py": _near(_LAUNCHER, "handoff", "credentials"),
    "launcher/oem.py": _near(_LAUNCHER, "oem", "check", "plan"),
    "launcher/plan.py": _near(_LAUNCHER, "plan", "check", "main"),
    "launcher/trust.py": _near(_LAUNCHER, "trust"),
}
"""Modules in which a mistake costs a secret, a rotation, or a VM, each with its fast tests.

mutmut runs of these, for each change, the tests that reach the changed function.
"""
SURVIVORS: Final = Path(__file__).with_name("survivors.toml")
SCORE_MIN: Final = 0.9

_MESSAGES: Final = (
    "Error",
    "_refuse",
    "_failed",
    "usage",
    "_cannot_make",
    "record",
    "_record",
    "_say",
    "warning",
    "Wait",
)
"""Calls whose arguments are messages, by the ends of their names."""
_PROSE_SPACES: Final = 2
"""A text with at least as many spaces is for people."""
_LABELS: Final = frozenset({"label", "message", "hint", "moment"})
"""Variables that hold nothing but words for people."""
_UNNOTICED: Final = frozenset({None, 0, 2, 5, 33, 34})
"""How mutmut says that the tests passed, or that no test was run to its end."""
_CODECS: Final = frozenset({"ascii", "utf-8", "sha256", "replace", "rb", "wb"})
_SETTINGS: Final = """\
[mutmut]
source_paths=
    credferry
only_mutate=credferry/{module}
pytest_add_cli_args_test_selection=
{tests}
also_copy=
    contrib
    docs
    SECURITY.md
    README.md
    CHANGELOG.md
    Makefile
use_git_change_detection=false
track_dependencies=false
"""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change. ``diff`` shows the changed lines. ``is_message``: only a message's text is changed."""

    module: str
    name: str
    noticed: bool
    is_message: bool
    diff: str


@dataclass(frozen=True, slots=True)
class Known:
    """Survivors that are known, each with a reason: one change of a module, or a kind of change."""

    changes: frozenset[tuple[str, str]] = frozenset()
    kinds: tuple[re.Pattern[str], ...] = ()

    def has(self, mutant: Mutant) -> bool:
        """Whether this change is listed."""
        if (mutant.module, mutant.diff) in self.changes:
            return True
        return any(kind.search(mutant.diff) for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class Score:
    """How many changes of a module count, how many of them the tests noticed, how many others are listed."""

    module: str
    counted: int
    noticed: int
    listed: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.noticed / self.counted if self.counted else 1.0

    @property
    def is_good(self) -> bool:
        """Whether enough is noticed, and each survivor is listed."""
        return self.share >= SCORE_MIN and self.noticed + self.listed == self.counted


def run(directory: Path, modules: Iterable[str] = MODULES) -> list[Mutant]:
    """All changes of some modules, made and tested in a copy below ``directory``."""
    return [mutant for module in modules for mutant in _run_one(directory, module)]


def _run_one(directory: Path, module: str) -> list[Mutant]:
    root = copies.make(directory / "core")
    _as_imported(root)
    tests = "\n".join(f"    {each}" for each in MODULES[module] if (root / each).exists())
    (root / "setup.cfg").write_text(_SETTINGS.format(module=module, tests=tests), encoding="utf-8")
    children = str(len(os.sched_getaffinity(0)))
    subprocess.run(
        [sys.executable, "-m", "mutmut", "run", "--max-children", children],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return read(root / "mutants/credferry", module)


def _as_imported(root: Path) -> None:
    """Lay the packages out as they are imported: mutmut takes a module's path for its name."""
    shutil.rmtree(root / "tests/support/path")
    (root / "credferry").mkdir()
    for package in ("agent", "launcher"):
        (root / package).rename(root / "credferry" / package)


def read(mutants: Path, module: str) -> list[Mutant]:
    """What mutmut has left of one module: the changed functions, and how the tests of each ended."""
    functions = _functions(ast.parse((mutants / module).read_text(encoding="utf-8")))
    results = json.loads((mutants / f"{module}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    found = []
    for key, status in results.items():
        name = key.rpartition(".")[2]
        before, after = functions[name.rpartition("__mutmut_")[0] + "__mutmut_orig"], functions[name]
        before.name = after.name
        found.append(
            Mutant(
                module,
                name,
                noticed=status not in _UNNOTICED,
                is_message=_without_messages(before) == _without_messages(after),
                diff=_diff(ast.unparse(before), ast.unparse(after)),
            )
        )
    return found


def scores(mutants: Iterable[Mutant], known: Known | None = None) -> list[Score]:
    """One score per module. Changes of messages are left out."""
    known = known or Known()
    counts: dict[str, list[int]] = {}
    for mutant in mutants:
        if mutant.is_message:
            continue
        count = counts.setdefault(mutant.module, [0, 0, 0])
        count[0] += 1
        count[1] += mutant.noticed
        count[2] += not mutant.noticed and known.has(mutant)
    return [Score(module, *count) for module, count in sorted(counts.items())]


def known_survivors(path: Path = SURVIVORS) -> Known:
    """The survivors that the file lists. Each must have a reason there."""
    file = tomllib.loads(path.read_text(encoding="utf-8"))
    return Known(
        frozenset((each["module"], each["diff"].strip()) for each in file["survivor"] if each["reason"]),
        tuple(re.compile(each["pattern"], re.MULTILINE) for each in file["kind"] if each["reason"]),
    )


def stale(mutants: Iterable[Mutant], known: Known) -> list[tuple[str, str]]:
    """Listed changes of the mutants' modules that are not made any more, or that a test notices by now."""
    mutants = list(mutants)
    modules = {each.module for each in mutants}
    survive = {(each.module, each.diff) for each in mutants if not each.noticed}
    return sorted(each for each in known.changes - survive if each[0] in modules)


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


class _Silence(ast.NodeTransformer):
    """Takes out what cannot matter: the words of messages, labels, and how a codec is written."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and node.value.lower() in _CODECS:
            return ast.Constant(node.value.lower())
        if isinstance(node.value, str) and node.value.count(" ") >= _PROSE_SPACES:
            return ast.Constant("prose")
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if any(isinstance(target, ast.Name) and target.id in _LABELS for target in node.targets):
            node.value = ast.Constant(None)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name.endswith(_MESSAGES):
            node.args = [each for each in node.args if not _is_text(each)]
            node.keywords = [each for each in node.keywords if each.arg not in {"hint", "message", None}]
        return node


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "str"
    return isinstance(node, ast.Constant | ast.JoinedStr)


def _without_messages(function: ast.FunctionDef) -> str:
    return ast.dump(_Silence().visit(ast.parse(ast.unparse(function))))


def _diff(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    gone, come = [], []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            gone += [line.strip() for line in old[i1:i2]]
            come += [line.strip() for line in new[j1:j2]]
    return "\n".join([*(f"- {line}" for line in gone), *(f"+ {line}" for line in come)])
