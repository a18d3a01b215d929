# SPDX-License-Identifier: MIT
"""The agent and the push unit killed at the steps of a push: no value is lost, and none is loaded twice.

The guest is a stand-in that keeps what it took (`tests.support.push_guest`), behind the VM's own socket. If
CREDFERRY_PUSHES is set, the random test makes that many pushes, and no effect of the agent is left out.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from tests.host.test_crash import (
    TABLES,
    Site,
    assert_chain_is_whole,
    assert_store_is_clean,
    steps_of_a_rotation,
    strike,
)
from tests.host.test_push import GUEST, PUSH, WORK, start_vm
from tests.support.deployment import Deployment
from tests.support.installation import CHECKOUT
from tests.support.numbers import Number, note
from tests.support.producer import SopsNix
from tests.support.push_guest import STEPS, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

pytestmark = pytest.mark.host

_PUSHES: Final = int(os.environ.get("CREDFERRY_PUSHES", "4"))
_STRIDE: Final = 1 if "CREDFERRY_PUSHES" in os.environ else 40
_SEED: Final = int(os.environ.get("CREDFERRY_PUSHES_SEED", "1"))
_VM: Final = 'live = true\n[vms.web.credentials]\nAPI_KEY = { secret = "api-key" }\n'


@dataclass(slots=True)
class LiveSite(Site):
    """A live VM. Its unit is started once; then what is published reaches its guest by pushes."""

    published: list[bytes] = field(default_factory=list)

    def publish(self) -> None:
        """Publish a value that has never been."""
        self.value = b"pushed %d" % len(self.published)
        self.published.append(self.value)
        self.sops.publish({"api-key": self.value})

    def loads(self) -> list[str]:
        """The digests of the values that the guest's unit has loaded, oldest first."""
        try:
            text = self.host.path(f"{WORK}/{Files.LOADS}").read_text()
        except FileNotFoundError:
            return []
        return [line.split()[1] for line in text.splitlines()]

    def arrived(self) -> bool:
        """Whether the unit in the guest has loaded what is published."""
        return self.loads()[-1:] == [hashlib.sha256(self.value).hexdigest()]

    def assert_arrives(self, when: object) -> None:
        """What is published reaches the guest. It loads no value twice, and the VM is not restarted."""
        self.host.wait(self.arrived, 20, f"{when}: {self.value!r} in the guest")
        loads = self.loads()
        assert len(loads) == len(set(loads)), when
        assert self.deployment.starts("web") == 1, when

    def stop_guest_at(self, step: int) -> None:
        """Let the guest stop at this step of its next push."""
        self.host.write(f"{WORK}/{Files.STOP}", str(step))

    def wait_stopped(self) -> None:
        """Wait until the guest has stopped."""
        self.host.run("cat", f"{WORK}/{Files.STOPPED}")

    def let_guest_go(self) -> None:
        """Let it go on."""
        self.host.run("sh", "-c", f"echo go >{WORK}/{Files.GO}")

    def kill_push(self) -> None:
        """SIGKILL to all processes of the push unit, if it runs."""
        self.host.run("systemctl", "kill", "--signal=KILL", PUSH, check=False)


@pytest.fixture
def site(host: Host) -> Iterator[LiveSite]:
    """A live VM in step with what is published; no agent yet."""
    deployment, sops = Deployment(host), SopsNix(host)
    made = LiveSite(host, deployment, sops)
    host.write(GUEST, (CHECKOUT / "tests/support/push_guest.py").read_bytes())
    deployment.configure(f"{TABLES}[vms.web]\n{_VM}")
    for _ in range(2):  # an old generation, for the pruning to have something to prune
        made.publish()
        deployment.credferry("agent", "--once")
    start_vm(deployment, "takes", is_sealed=True)
    host.run("mkfifo", "-m", "0666", *(f"{WORK}/{name}" for name in (Files.STOPPED, Files.GO)))
    yield made
    deployment.close()
    sops.remove()


@pytest.mark.timeout(900)
def test_the_agent_killed_at_each_step_of_a_push(site: LiveSite) -> None:
    """SIGKILL right before an effect of the agent: started again, it finishes the push.

    The guest's unit loads the value once, the VM is not restarted, and the audit's chain stays whole.
    """
    steps = steps_of_a_rotation(site)
    assert [step for step in steps if "pushed.json" in step.what], steps
    for step in steps[::_STRIDE]:
        assert strike(site, step), f"never struck: {step}"
    assert_all_is_well(site)


@pytest.mark.timeout(0 if "CREDFERRY_PUSHES" in os.environ else 300)
def test_pushes_with_random_kills(site: LiveSite) -> None:
    """The agent, the push unit or both are killed at a step of the guest's, or at any moment.

    Sometimes a newer value is published meanwhile. All arrives, nothing twice, and the VM stays up.
    """
    chance = random.Random(_SEED)  # noqa: S311 (the same kills in each run)
    site.restart_agent()
    for number in range(_PUSHES):
        who = chance.choice(("agent", "push unit", "agent and push unit"))
        step = chance.randint(0, STEPS)
        push_with_a_kill(site, who, step, chance)
        site.assert_arrives(f"seed {_SEED}, push {number}: {who} killed at step {step}")
    assert_all_is_well(site)
    if "CREDFERRY_PUSHES" in os.environ:
        note(Number.PUSHES_KILLED, _PUSHES)


def push_with_a_kill(site: LiveSite, who: str, step: int, chance: random.Random) -> None:
    """Publish, and kill at a step of the guest's, or at some moment if the step is 0; let all go on then."""
    if step:
        site.stop_guest_at(step)
    site.publish()
    if step:
        site.wait_stopped()
    else:
        time.sleep(chance.uniform(0, 0.8))  # not waiting for anything: this is the moment
    if chance.random() < 0.2:
        site.publish()
    if "push" in who:
        site.kill_push()
    if "agent" in who:
        site.deployment.kill_agent()
    agent_first = chance.random() < 0.5
    if "agent" in who and agent_first:
        site.restart_agent()
    if step:
        site.let_guest_go()
    if "agent" in who and not agent_first:
        site.restart_agent()


def assert_all_is_well(site: LiveSite) -> None:
    """An agent that is left alone brings one more value; nothing is lost, doubled, or left half-made."""
    site.restart_agent()
    site.publish()
    site.assert_arrives("the last push")
    site.deployment.wait_in_step("web")
    assert site.deployment.starts("web") == 1
    assert_store_is_clean(site)
    assert_chain_is_whole(site)
