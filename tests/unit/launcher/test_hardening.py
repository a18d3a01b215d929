# SPDX-License-Identifier: MIT
"""What keeps values in the launcher's memory, and in what it leaves behind, to themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from credferry.launcher.handoff import Kind
from tests.support.modules import MODULES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .conftest import Vm

# The launcher, telling of limits that are set and of files that are opened (sys.addaudithook).
TELL = """
import os, resource, sys
from credferry.launcher.__main__ import main

def tell(event, arguments):
    if event == "resource.setrlimit" and arguments[0] == resource.RLIMIT_CORE:
        print("core", arguments[1][0])
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        print(os.path.basename(arguments[0]))

sys.addaudithook(tell)
main(sys.argv[1:])
"""
NO_CORE = re.compile(r"^Max core file size +0 +0 ", re.MULTILINE)


def test_hypervisor_and_child_leave_no_core(light_vm: Vm) -> None:
    """Neither may write a core, nor allow itself one again."""
    light_vm.credentials(API_KEY=(Kind.PLAIN, b"value"))
    light_vm.start(*light_vm.argv())
    light_vm.wait_stamp()
    for pid in (light_vm.pid, light_vm.child()):
        assert NO_CORE.search(Path(f"/proc/{pid}/limits").read_text())


def test_the_limit_comes_before_the_values(light_vm: Vm) -> None:
    """Cores are forbidden before the first credential is opened."""
    light_vm.credentials(API_KEY=(Kind.PLAIN, b"value"))
    _, _, _, *arguments = light_vm.command("--explain", *light_vm.argv())
    told = python(TELL, *arguments, env=light_vm.environment).splitlines()
    assert told.index("core 0") < told.index("credferry_manifest")


def test_the_child_cannot_be_read_by_others_of_its_user() -> None:
    """It holds what it sent: it is kept out of core dumps and from ptrace (PR_GET_DUMPABLE is 0)."""
    code = (
        "import ctypes; from credferry.launcher.hardening import hide; hide()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    assert python(code, env={"PYTHONPATH": str(MODULES), "PYTHONDONTWRITEBYTECODE": "1"}) == "0\n"


def python(code: str, *arguments: str, env: Mapping[str, str]) -> str:
    """What a program writes to its standard output or, last, its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr
