# SPDX-License-Identifier: MIT
"""`agent/untrusted.py` alone opens files that another user can write. Every other open is listed here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "agent/untrusted.py": "the function itself",
    "agent/cli/guest_key.py": "writes a new file where the operator says (O_EXCL)",
    "agent/config/loading.py": "the configuration, which root or the caller names",
    "agent/doctor/configuration.py": "the configuration, to see whether it can be read",
    "agent/doctor/key.py": "the host's key, in a directory of root's",
    "agent/doctor/probe.py": "never blocks, and reads nothing for a VM's user that it could not read",
    "agent/doctor/source.py": "a directory of the source (O_PATH)",
    "agent/fleet/gateway.py": "etcd's password, in a file that root names: never blocks, regular files",
    "agent/store/files.py": "writes new files (O_EXCL), and opens directories to sync them",
    "agent/store/form.py": "makes a file in a directory that it has just made (O_NOFOLLOW, O_NONBLOCK)",
    "agent/audit/writer.py": "writes in place (O_NOFOLLOW, O_NONBLOCK)",
    "agent/sealing/keys.py": "key files: no link, never blocks, systemd's conditions; and /etc/machine-id",
    "agent/daemon/textfile.py": "writes a new file (O_EXCL)",
    "agent/source/mounts.py": "the kernel's table of mounts",
    "agent/rollout/nixos.py": "the kernel's list of locks",
    "agent/source/sandbox.py": "the kernel's account of this process",
    "agent/source/reading.py": "secrets: no link out of the source, never blocks, regular files",
    "agent/source/way_in.py": "the way to the source, step by step; checks whose links it follows",
    "agent/store/guest_keys.py": "root's directory, checked by its descriptor; writes new files (O_EXCL)",
    "agent/store/locks.py": "locks (O_NOFOLLOW, O_NONBLOCK)",
}
"""Modules that open files by themselves, and why they may."""
_OPENERS = {"open", "fdopen", "read_text", "read_bytes"}


def opens(tree: ast.AST) -> list[int]:
    """The lines on which files are opened for reading or writing by name."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of = (
            function.value.id
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
            else ""
        )
        if name in _OPENERS and (of, name) not in {("os", "fdopen"), ("webbrowser", "open")}:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "agent").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_other_module_opens_files(path: Path) -> None:
    """A module that is not in the table opens nothing, and one that is in it still does."""
    name = str(path.relative_to(ROOT))
    lines = opens(ast.parse(path.read_text(encoding="utf-8")))
    assert bool(lines) is (name in ALLOWED), (name, lines)


def test_an_open_is_found() -> None:
    """Each way to open a file by its name is seen, whatever stands before it."""
    for text in ("open(p)", "os.open(p, 0)", "p.open()", "x.y.read_text()", "Path(p).read_bytes()"):
        assert opens(ast.parse(text)) == [1], text
    assert opens(ast.parse("os.fdopen(3); read_untrusted(p); os.stat(p)")) == []
