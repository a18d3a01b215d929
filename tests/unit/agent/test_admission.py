# SPDX-License-Identifier: MIT
"""Limits of calls under way at once."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, cast

from credferry.agent.bus.published import Caller
from credferry.agent.control.admission import OF_ALL, PER_USER, Admission
from credferry.agent.control.server import Control
from tests.support.host import patience

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from credferry.agent.rollout.orders import Orders

ROOT, MEMBER = 0, 1000


def test_a_user_has_so_many_calls_and_no_more() -> None:
    """One call more than the limit is refused, until one of the user's calls is over."""
    admission = Admission()
    assert [admission.admit(MEMBER) for _ in range(PER_USER + 1)] == [*[True] * PER_USER, False]
    admission.leave(MEMBER)
    assert admission.admit(MEMBER)
    assert not admission.admit(MEMBER)


def test_one_user_s_calls_leave_room_for_another_s() -> None:
    """A user who has reached the limit takes nothing from the next user."""
    admission = Admission()
    while admission.admit(MEMBER):
        pass
    assert admission.admit(MEMBER + 1)


def test_many_users_together_have_a_limit_and_root_has_none() -> None:
    """However many users call, the number of threads is bounded, and root is always served."""
    admission = Admission()
    admitted = [uid for uid in range(MEMBER, MEMBER + 2 * OF_ALL) if admission.admit(uid)]
    assert len(admitted) == OF_ALL
    assert all(admission.admit(ROOT) for _ in range(10 * OF_ALL))
    for uid in admitted:
        admission.leave(uid)
    assert admission.admit(MEMBER), "root's calls do not count against other users"


def test_a_user_who_has_an_answer_may_call_again() -> None:
    """A call is over before its answer is sent: the user's next one may come at once, and is not refused."""
    control = Control(cast("Orders", None))
    counts: queue.SimpleQueue[int] = queue.SimpleQueue()

    def answer() -> Callable[[], None]:
        counts.put(control._admission._under_way[MEMBER])
        return lambda: counts.put(control._admission._under_way[MEMBER])

    assert control._serve(Caller(MEMBER), answer)
    assert [counts.get(timeout=20 * patience()) for _ in range(2)] == [1, 0]


def test_a_call_that_gets_no_thread_is_refused_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the system gives no thread, a user's calls are refused; after that they are served again."""
    control = Control(cast("Orders", None))
    answered = threading.Event()

    def refuse(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not any(control._serve(Caller(MEMBER), lambda: answered.set) for _ in range(PER_USER))
    assert control._serve(Caller(MEMBER), lambda: answered.set)
    assert answered.wait(20 * patience())
