# SPDX-License-Identifier: MIT
"""What a process does to keep its memory to itself, seen from outside it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[3] / "agent" / "hardening.py"
# Says what was done, then stays as it is until its input ends. The module comes as text, as another user
# need not be able to read the checkout.
PROGRAM = f"""
import mmap, resource, sys, types
module = sys.modules["hardening"] = types.ModuleType("hardening")
exec(compile({MODULE.read_text()!r}, "hardening.py", "exec"), module.__dict__)
done = module.harden()
later = mmap.mmap(-1, 64 << 20)
print([done.dumpable, done.core], resource.getrlimit(resource.RLIMIT_CORE), done.swap, flush=True)
sys.stdin.read()
"""


def hardened(*prefix: str) -> subprocess.Popen[str]:
    """A hardened process that may lock 1 MiB of memory, and has written its first line when it is read."""
    # Lower than what is allowed, which nobody may raise: another test may have given it up.
    allowed = resource.getrlimit(resource.RLIMIT_CORE)[1]
    core = 4096 if allowed == resource.RLIM_INFINITY else min(allowed, 4096)
    command = ["prlimit", "--memlock=1048576:1048576", f"--core={core}:{core}", *prefix]
    return subprocess.Popen(
        [*command, sys.executable, "-c", PROGRAM],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """What the process says was not done, and its limit on cores."""
    assert process.stdout
    return process.stdout.readline().strip()


def status(process: subprocess.Popen[str], name: str) -> int:
    """A number of /proc/PID/status."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def test_no_core_and_nobody_else() -> None:
    """No core may be written, and the process's files in /proc are root's, whoever it runs as."""
    as_nobody = ("setpriv", "--reuid=65534", "--clear-groups", "--") if os.geteuid() == 0 else ()
    with hardened(*as_nobody) as process:
        assert said(process).startswith("['', ''] (0, 0)")
        assert status(process, "Uid") == (65534 if as_nobody else os.getuid())
        assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0
        peek = ["head", "--bytes=0", f"/proc/{process.pid}/mem"]
        assert subprocess.run([*as_nobody, *peek], capture_output=True, check=False).returncode == 1


def test_a_limit_on_locked_memory_is_respected() -> None:
    """Where locked memory is limited nothing stays locked, and 64 MiB more can be had."""
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--") if os.geteuid() == 0 else ()
    with hardened(*drop) as process:
        assert said(process).startswith("['', ''] (0, 0) mlockall: ")
        assert status(process, "VmLck") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="without a privilege, locked memory is limited here")
def test_memory_is_locked_where_it_may_be() -> None:
    """With the privilege all memory is locked, also what comes later, and none is made present by it."""
    with hardened() as process:
        assert said(process) == "['', ''] (0, 0)"
        assert status(process, "VmLck") > 64 << 10
        assert status(process, "VmRSS") < 64 << 10, "64 MiB are mapped and never touched"
