# SPDX-License-Identifier: MIT
"""The connection to the system bus, without a bus."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from credferry.agent.bus.connection import Variant
from credferry.agent.bus.names import PROPERTIES_INTERFACE
from credferry.agent.bus.published import Caller, ObjectServer
from credferry.agent.control.interface import VM_INTERFACE, vm_path
from credferry.agent.control.objects import VmObject, vm_properties
from credferry.agent.reconcile.decision import State
from credferry.agent.reconcile.status import VmStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.bus.connection import Bus
    from credferry.agent.bus.published import Serve


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


CALLER = 1234


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of a published object, and what they were answered: the values, or an error's name."""

    method: Callable[..., None]

    def ask(self, name: str, *arguments: str) -> tuple[Any, ...]:
        """Read properties."""
        answers: list[tuple[Any, ...]] = []
        invocation = SimpleNamespace(
            return_value=lambda value: answers.append(value.unpack()),
            return_dbus_error=lambda name, _text: answers.append((name,)),
        )
        self.method(None, ":1.1", vm_path("web"), PROPERTIES_INTERFACE, name, arguments, invocation)
        (answer,) = answers
        return answer


def published(vm: VmObject, serve: Serve) -> Calls:
    """A VM's object on a connection, which stands in for a bus: what that says when is not asked here."""
    methods: list[Callable[..., None]] = []

    def register_object(_path: str, _interface: object, method: Callable[..., None], *_: object) -> int:
        methods.append(method)
        return len(methods)

    def call(*arguments: Any) -> None:  # noqa: ANN401 (as GDBus's)
        *_, answered = arguments
        answered(SimpleNamespace(call_finish=lambda _result: Variant("(u)", (CALLER,))), None)

    connection = SimpleNamespace(register_object=register_object, call=call)
    bus = SimpleNamespace(
        invoke=lambda make: make(), pydbus=SimpleNamespace(con=connection), connection=connection
    )
    ObjectServer(cast("Bus", bus), serve).publish(vm_path("web"), vm)
    return Calls(methods[0])


def serve_at_once(_caller: Caller, answer: Callable[[], Callable[[], None]]) -> bool:
    """Answer a call in the thread that asks."""
    answer()()
    return True


def test_all_properties_of_a_vm_are_of_one_moment() -> None:
    """A VM that is behind is never shown as in step, though it changes while its properties are read."""
    vm = VmObject({})
    before = Shown(properties(State.IN_STEP, 1, 1))

    def change() -> None:
        vm.properties = properties(State.RESTART_DUE, 2, 1)

    before.replace = change
    vm.properties = before
    calls = published(vm, serve_at_once)
    (shown,) = calls.ask("GetAll", VM_INTERFACE)
    assert (shown["State"], shown["Sealed"], shown["Running"]) == ("in step", 1, 1)
    assert shown.keys() == before.keys()


@pytest.mark.parametrize("question", [("Get", VM_INTERFACE, "State"), ("GetAll", VM_INTERFACE)])
def test_a_read_of_properties_counts_as_a_call(question: tuple[str, ...]) -> None:
    """It is served, and refused, as each method is, by the user that the bus names."""
    served: list[Caller] = []

    def serve(caller: Caller, answer: Callable[[], Callable[[], None]]) -> bool:
        served.append(caller)
        if len(served) == 1:
            answer()()
        return len(served) == 1

    calls = published(VmObject(properties(State.IN_STEP, 1, 1)), serve)
    (shown,) = calls.ask(*question)
    assert (shown if isinstance(shown, str) else shown["State"]) == "in step"
    assert calls.ask(*question) == ("org.freedesktop.DBus.Error.LimitsExceeded",)
    assert served == [Caller(CALLER)] * 2
