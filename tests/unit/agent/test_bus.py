# SPDX-License-Identifier: MIT
"""The connection to the system bus, without a bus."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from credferry.agent.bus.names import PROPERTIES_INTERFACE
from credferry.agent.bus.published import ObjectServer
from credferry.agent.control.interface import VM_INTERFACE, vm_path
from credferry.agent.control.objects import VmObject, vm_properties
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import VmStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from gi.repository import GLib

    from credferry.agent.bus.connection import Bus


def test_the_connection_needs_no_other_module_of_its_room() -> None:
    """Verbs publish nothing on the bus, and still have pydbus's part of each connection."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from credferry.agent.bus import connection; connection.Gio.DBusConnection.pydbus",
        ],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_classes_that_threads_use_are_made_before_the_threads() -> None:
    """PyGObject makes a class at its first use, which two threads must not do at the same time."""
    script = (
        "from credferry.agent.bus.connection import GLib; "
        "print({'VariantType', 'VariantBuilder', 'MainLoop'} - vars(GLib._introspection_module).keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


class Shown(dict[str, Any]):
    """Properties of a VM, which another thread replaces right after one of them was read."""

    replace: Callable[[], None]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 (as each property is)
        value = super().__getitem__(name)
        self.replace()
        return value


def properties(state: State, sealed: int, running: int) -> dict[str, Any]:
    """All properties of a VM's object."""
    status = VmStatus(
        name="web",
        unit="microvm@web.service",
        unit_state="active (running)",
        state=state,
        reasons=(),
        since=1,
        sealed=sealed,
        running=running,
        is_held=False,
        last_result="",
        system="",
        arrived=None,
        next_way=None,
        next_reason="",
    )
    return vm_properties(status) | {"Order": "", "OrderResult": ""}


def test_all_properties_of_a_vm_are_of_one_moment() -> None:
    """A VM that is behind is never shown as in step, though it changes while its properties are read."""
    vm = VmObject({})
    before = Shown(properties(State.IN_STEP, 1, 1))

    def change() -> None:
        vm.properties = properties(State.RESTART_DUE, 2, 1)

    before.replace = change
    vm.properties = before
    answer: list[GLib.Variant] = []
    call: list[Any] = []

    def register_object(_path: str, _interface: object, method: object, *_: object) -> int:
        call.append(method)
        return len(call)

    connection = SimpleNamespace(register_object=register_object)
    # The bus stands in for a connection: what it says when is not asked here.
    bus = SimpleNamespace(invoke=lambda make: make(), pydbus=SimpleNamespace(con=connection))
    ObjectServer(cast("Bus", bus), lambda _caller, _answer: False).publish(vm_path("web"), vm)
    invocation = SimpleNamespace(return_value=answer.append)
    question = (PROPERTIES_INTERFACE, "GetAll", (VM_INTERFACE,), invocation)
    call[0](None, ":1.1", vm_path("web"), *question)
    (shown,) = answer[0].unpack()
    assert (shown["State"], shown["Sealed"], shown["Running"]) == ("in step", 1, 1)
    assert shown.keys() == before.keys()
