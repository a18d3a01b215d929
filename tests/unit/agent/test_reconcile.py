# SPDX-License-Identifier: MIT
"""Decisions: published, sealed and running compared; never a restart without a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.config.loading import parse
from credferry.agent.config.model import DEFAULT_PATH, Config, Policy, VmConfig
from credferry.agent.config.secrets import CredentialConfig
from credferry.agent.reconcile.decision import Decision, State, decide
from credferry.agent.reconcile.desired import Desired, Fingerprints, Refused, Unpaired, desired
from credferry.agent.reconcile.observed import NOT_REPORTED, Observed
from credferry.agent.sealing.keys import KEY_DIGITS, CredentialKey
from credferry.agent.source.published import Publication
from credferry.agent.source.reading import Problem
from credferry.agent.source.snapshot import Snapshot, SourceGeneration
from credferry.agent.store.evidence import Evidence
from credferry.agent.store.records import Assumed, Attempt, Outcome, Way
from credferry.agent.systemd.units import UnitState
from credferry.launcher.handoff import (
    PUSH_MANIFEST,
    Channel,
    Delivery,
    Kind,
    Manifest,
    ManifestEntry,
    Secret,
    Stamp,
)

KEY = CredentialKey(bytes(4096))
GUEST = CredentialKey(b"\1" * 4096)
VM = VmConfig(name="web", unit="microvm@web.service", credentials={"K": CredentialConfig(secret="k")})
KEY_ID = KEY.digest_id
NEW, OLD = "e" * 56 + KEY_ID, "0" * 56 + KEY_ID
OF_ANOTHER_KEY = "e" * 64
INVOCATION, OTHER = "a" * 32, "b" * 32


def snapshot(**values: Secret | Problem) -> Publication:
    """What the default source holds."""
    return Publication({"": Snapshot(SourceGeneration(1, 1, committed=True), values)})


def manifest(digest: str, delivery: Delivery = VM.delivery) -> Manifest:
    """A sealed generation."""
    return Manifest("web", 1, digest, "0" * 32, delivery, ())


def live(sealed: Manifest) -> Manifest:
    """The same generation, of a VM that is live."""
    return sealed.but(credentials=(ManifestEntry(PUSH_MANIFEST, Kind.PLAIN, "0" * 16),))


def kept(digest: str, invocation: str = INVOCATION) -> Evidence:
    """What root has kept of some invocation's start."""
    return Evidence(invocation, 1, digest, "0" * 32)


def hint(invocation: str = INVOCATION, other: int = 0) -> Stamp:
    """What the launcher, or a neighbour, has reported of some invocation's start."""
    of_the_same_key = "9" * (len(NEW) - KEY_DIGITS) + NEW[-KEY_DIGITS:]
    return Stamp("web", 9, of_the_same_key, "9" * 32, invocation, Channel.API, other)


def unit(active: str = "active", load: str = "loaded", job: bool = False) -> UnitState:
    """The unit as systemd tells it."""
    return UnitState("microvm@web.service", load, active, "running", INVOCATION, has_job=job)


WANTED = Desired(NEW, (), {}, VM.delivery)


def observed(
    wanted: Desired | Refused = WANTED,
    sealed: Manifest | None = None,
    state: UnitState | None = None,
    left: Evidence | None = None,
    assumed: Assumed | None = None,
    attempt: Attempt | None = None,
) -> Observed:
    """Everything about the VM at one moment."""
    report = hint() if left is not None else None
    return Observed(VM, wanted, sealed, state, left, assumed, attempt, hint=report)


@pytest.mark.parametrize(
    ("now", "state", "seal", "restart"),
    [
        (observed(sealed=manifest(NEW), state=unit(), left=kept(NEW)), State.IN_STEP, False, False),
        (observed(sealed=manifest(OLD), state=unit(), left=kept(OLD)), State.RESTART_DUE, True, True),
        (observed(sealed=manifest(NEW), state=unit(), left=kept(OLD)), State.RESTART_DUE, False, True),
        (observed(sealed=manifest(OLD), state=unit("inactive")), State.STOPPED, True, False),
        (observed(sealed=manifest(OLD), state=unit("failed")), State.STOPPED, True, False),
        (observed(sealed=manifest(OLD), state=unit("activating")), State.CHANGING, True, False),
        (observed(sealed=manifest(OLD), state=unit(job=True), left=kept(OLD)), State.CHANGING, True, False),
        (observed(sealed=manifest(OLD), state=unit(load="not-found")), State.NO_UNIT, True, False),
        (observed(sealed=manifest(OLD)), State.SEAL_DUE, True, False),
        (observed(sealed=manifest(NEW)), State.IN_STEP, False, False),
        (observed(Refused(("x",)), manifest(OLD), unit(), kept(OLD)), State.REFUSED, False, False),
        (observed(Refused(("x",)), manifest(NEW), unit(), kept(OLD)), State.REFUSED, False, False),
        (observed(sealed=manifest(NEW), state=unit(), left=kept(OLD), attempt=Attempt(NEW, Outcome.FAILED)),
         State.FAILED, False, False),
        (observed(sealed=manifest(NEW), state=unit(), attempt=Attempt(NEW, Outcome.FAILED)),
         State.FAILED, False, False),
        (observed(sealed=manifest(NEW), state=unit(), assumed=Assumed(INVOCATION, NEW),
                  attempt=Attempt(NEW, Outcome.FAILED)), State.FAILED, False, False),
        (observed(sealed=manifest(NEW), state=unit(), left=kept(NEW), attempt=Attempt(NEW, Outcome.FAILED)),
         State.IN_STEP, False, False),
        (observed(sealed=manifest(NEW), state=unit(), left=kept(OLD), attempt=Attempt(NEW, Outcome.HALTED)),
         State.HALTED, False, False),
        (observed(sealed=manifest(OLD), state=unit(), left=kept(OLD), attempt=Attempt(OLD, Outcome.FAILED)),
         State.RESTART_DUE, True, True),
        (observed(sealed=manifest(NEW, Delivery(guest_systemd=257)), state=unit(), left=kept(NEW)),
         State.SEAL_DUE, True, False),
        (observed(sealed=live(manifest(NEW)), state=unit(), left=kept(NEW)), State.SEAL_DUE, True, False),
    ],
    ids=[
        "in step", "changed", "sealed before a crash", "stopped", "down after a failure", "starting", "job",
        "no unit", "systemd not asked", "systemd not asked and in step", "refused", "refused after sealing",
        "failed before", "failed without a stamp", "failed, and assumed since", "came right by hand",
        "halted before", "changed since it failed", "only the delivery differs",
        "no longer live",
    ],
)  # fmt: skip
def test_decisions(now: Observed, state: State, seal: bool, restart: bool) -> None:
    """Each situation has its one decision."""
    decision = decide(now)
    assert (decision.state, decision.seal is not None, decision.restart) == (state, seal, restart)


ROLLBACK = Attempt(NEW, Outcome.FAILED, "it broke", previous=7)


@pytest.mark.parametrize(
    ("now", "state", "roll_back", "restart"),
    [
        (observed(sealed=manifest(NEW), state=unit("failed"), attempt=ROLLBACK), State.FAILED, True, False),
        (observed(sealed=manifest(OLD), state=unit("failed"), attempt=ROLLBACK), State.FAILED, True, False),
        (observed(sealed=manifest(OLD), state=unit(), left=kept(OLD),
                  attempt=msgspec.structs.replace(ROLLBACK, outcome=Outcome.ROLLED_BACK)),
         State.FAILED, False, False),
        (observed(sealed=manifest(NEW), state=unit("failed"),
                  attempt=Attempt(NEW, Outcome.RESTARTING, previous=7)), State.FAILED, True, False),
        (observed(sealed=manifest(NEW), state=unit("inactive"),
                  attempt=Attempt(NEW, Outcome.RESTARTING, previous=7)), State.STOPPED, False, False),
        (observed(sealed=manifest(NEW), state=unit(), left=kept(OLD),
                  attempt=Attempt(NEW, Outcome.RESTARTING, previous=7)), State.RESTART_DUE, False, True),
        (observed(sealed=manifest(NEW), state=unit(), left=kept(NEW),
                  attempt=Attempt(NEW, Outcome.RESTARTING, previous=7)), State.IN_STEP, False, False),
        (observed(sealed=manifest(NEW), state=unit("failed"), attempt=Attempt(NEW, Outcome.FAILED)),
         State.FAILED, False, False),
    ],
    ids=[
        "failed", "put back and not yet started", "rolled back", "down when the agent died",
        "stopped when the agent died", "not begun when the agent died", "done when the agent died",
        "nothing to go back to",
    ],
)  # fmt: skip
def test_rollbacks(now: Observed, state: State, roll_back: bool, restart: bool) -> None:
    """A failed rollout is rolled back, wherever the agent died in it; what failed is not sealed again."""
    decision = decide(now)
    assert (decision.state, decision.roll_back, decision.restart) == (state, roll_back, restart)
    assert decision.seal is None


@pytest.mark.parametrize(
    ("policy", "held", "state", "restart"),
    [
        (Policy.RESTART, False, State.RESTART_DUE, True),
        (Policy.RESTART, True, State.HELD, False),
        (Policy.HOLD, False, State.HELD, False),
        (Policy.IGNORE, False, State.IGNORED, False),
        (Policy.IGNORE, True, State.IGNORED, False),
    ],
)
def test_policies(policy: Policy, held: bool, state: State, restart: bool) -> None:
    """A VM that is held, by its policy or by an operator, or ignored, is sealed for, and not restarted."""
    vm = msgspec.structs.replace(VM, policy=policy)
    decision = decide(Observed(vm, WANTED, manifest(OLD), unit(), kept(OLD), None, None, held=held))
    assert (decision.state, decision.restart, decision.seal) == (state, restart, WANTED)


class TestWithoutEvidence:
    """A VM whose start root kept no evidence of."""

    def test_is_waited_for_at_first(self) -> None:
        """A unit that came up just now gets time to report its start; what it runs is written down."""
        decision = decide(observed(sealed=manifest(OLD), state=unit()), grace_over=False)
        assert (decision.state, decision.look_again, decision.restart) == (State.CHANGING, True, False)

    def test_is_taken_to_run_what_was_sealed_before(self) -> None:
        """Then a change restarts it; the assumption is written down, so that a crash does not lose it."""
        decision = decide(observed(sealed=manifest(OLD), state=unit()))
        assert decision.assume == Assumed(INVOCATION, OLD, 1)
        assert decision.restart

    def test_is_left_alone_at_the_first_sealing_of_all(self) -> None:
        """Installing credferry on a host with running VMs restarts none of them."""
        decision = decide(observed(state=unit()))
        assert decision.assume == Assumed(INVOCATION, NEW)
        assert (decision.seal, decision.restart) == (WANTED, False)

    def test_an_assumption_survives_sealing(self) -> None:
        """After a crash between sealing and restarting, what was assumed before still tells of the gap."""
        decision = decide(
            observed(sealed=manifest(NEW), state=unit(), assumed=Assumed(INVOCATION, OLD)), grace_over=True
        )
        assert decision.restart

    def test_an_assumption_of_another_invocation_counts_as_none(self) -> None:
        """What was assumed of an earlier invocation says nothing of this one."""
        decision = decide(observed(sealed=manifest(NEW), state=unit(), assumed=Assumed(OTHER, OLD)))
        assert not decision.restart


@pytest.mark.parametrize("grace_over", [True, False])
@pytest.mark.parametrize("attempt", [None, Attempt(NEW, Outcome.RESTARTING, previous=1)])
def test_a_report_does_not_say_what_runs(attempt: Attempt | None, grace_over: bool) -> None:
    """By the evidence the VM is in step, whatever generation and digest were reported."""
    now = observed(sealed=manifest(NEW), state=unit(), left=kept(NEW), attempt=attempt)
    decision = decide(now, grace_over=grace_over)
    assert (decision.state, decision.restart, decision.roll_back) == (State.IN_STEP, False, False)


@pytest.mark.parametrize("attempt", [None, Attempt(NEW, Outcome.RESTARTING, previous=1)])
def test_a_report_that_is_gone_rolls_nothing_back(attempt: Attempt | None) -> None:
    """Nor for a VM whose guest has rebooted a few times; that it is lacking is said."""
    state = replace(unit(), restarts=5)
    now = Observed(VM, WANTED, manifest(NEW), state, kept(NEW), None, attempt)
    decision = decide(now)
    assert (decision.state, decision.restart, decision.roll_back) == (State.IN_STEP, False, False)
    assert decision.reasons == (NOT_REPORTED,)
    assert decision.forget == (attempt is not None)


def test_a_report_hides_no_rotation() -> None:
    """One that claims to run what is published is not believed."""
    now = replace(
        observed(sealed=manifest(NEW), state=unit(), left=kept(OLD)),
        hint=hint().but(digest=NEW),
    )
    assert decide(now).restart


def test_no_restart_into_a_start_that_keeps_no_evidence() -> None:
    """The VM stays up and is refused with the remedy; what is published is sealed all the same."""
    now = observed(sealed=manifest(OLD), state=replace(unit(), keeps_evidence=False), left=kept(OLD))
    decision = decide(now)
    assert (decision.state, decision.restart, decision.seal) == (State.REFUSED, False, WANTED)
    assert "drop-in" in decision.reasons[0]
    assert "credferry doctor" in decision.reasons[0]


@given(
    sealed=st.sampled_from([None, manifest(OLD), manifest(NEW)]),
    state=st.builds(
        unit,
        st.sampled_from(["active", "inactive", "failed", "activating", "deactivating", "reloading"]),
        st.sampled_from(["loaded", "not-found", "masked"]),
        st.booleans(),
    ),
    left=st.sampled_from([None, kept(OLD), kept(NEW), kept(OLD, OTHER), kept(NEW, OTHER)]),
    assumed=st.sampled_from([None, Assumed(INVOCATION, OLD), Assumed(OTHER, NEW)]),
    attempt=st.sampled_from(
        [
            None,
            *(
                Attempt(digest, outcome)
                for digest in (OLD, NEW)
                for outcome in (Outcome.FAILED, Outcome.HALTED)
            ),
        ]
    ),
    wanted=st.sampled_from([WANTED, Refused(("absent",))]),
    grace=st.booleans(),
)
def test_restarts_have_a_reason(
    sealed: Manifest | None,
    state: UnitState,
    left: Evidence | None,
    assumed: Assumed | None,
    attempt: Attempt | None,
    wanted: Desired | Refused,
    grace: bool,
) -> None:
    """A restart is decided only for an active unit that is known to run something else than is published.

    Or for one that is down since a restart of ours failed, once there is something newer.
    """
    decision = decide(observed(wanted, sealed, state, left, assumed, attempt), grace_over=grace)
    if decision.restart:
        assert isinstance(wanted, Desired)
        assert not state.has_job
        assert not (attempt and attempt.digest == NEW)
        if state.is_active:
            assert not (left and left.invocation_id == INVOCATION and left.digest == NEW)
        else:
            assert state.active == "failed"
            assert attempt is not None
            assert attempt.outcome is Outcome.FAILED
    if isinstance(wanted, Refused):
        assert decision.seal is None


class TestDesired:
    """What a VM should get, from what is published."""

    def test_same_bytes_same_digest(self) -> None:
        """Another generation with identical bytes is no change."""
        first = desired(VM, snapshot(k=Secret(b"canary")), Fingerprints(KEY), None)
        again = desired(
            VM,
            Publication({"": Snapshot(SourceGeneration(9, 9, committed=False), {"k": Secret(b"canary")})}),
            Fingerprints(KEY),
            None,
        )
        assert isinstance(first, Desired)
        assert isinstance(again, Desired)
        assert first.digest == again.digest
        assert "canary" not in repr(first)

    @pytest.mark.parametrize(
        "other",
        [
            desired(VM, snapshot(k=Secret(b"w")), Fingerprints(KEY), None),
            desired(VM, snapshot(k=Secret(b"v")), Fingerprints(GUEST), None),
            desired(
                VmConfig(name="web", credentials={"L": CredentialConfig(secret="k")}),
                snapshot(k=Secret(b"v")), Fingerprints(KEY), None,
            ),
            desired(
                VmConfig(name="web", guest_key=True, credentials={"K": CredentialConfig(secret="k")}),
                snapshot(k=Secret(b"v")), Fingerprints(KEY), GUEST,
            ),
        ],
        ids=["value", "host key", "credential's name", "sealed"],
    )  # fmt: skip
    def test_any_difference_is_another_digest(self, other: Desired | Refused) -> None:
        """The digest covers all that the guest gets, and tells nothing without the host's key."""
        first = desired(VM, snapshot(k=Secret(b"v")), Fingerprints(KEY), None)
        assert isinstance(first, Desired)
        assert isinstance(other, Desired)
        assert first.digest != other.digest

    def test_a_new_guest_key_is_a_change(self) -> None:
        """Values sealed with a key that the guest no longer has would not open."""
        vm = VmConfig(name="web", guest_key=True, credentials={"K": CredentialConfig(secret="k")})
        digests = {
            each.digest
            for key in (KEY, GUEST)
            if isinstance(each := desired(vm, snapshot(k=Secret(b"v")), Fingerprints(KEY), key), Desired)
        }
        assert len(digests) == 2
        assert isinstance(desired(vm, snapshot(k=Secret(b"v")), Fingerprints(KEY), None), Refused)

    @pytest.mark.parametrize("problem", list(Problem))
    def test_required_secrets(self, problem: Problem) -> None:
        """A required secret with any problem refuses the VM; the reason names both, and the remedy."""
        result = desired(VM, snapshot(k=problem), Fingerprints(KEY), None)
        assert isinstance(result, Refused)
        assert result.reasons == (f"K: secret 'k' {problem}: {problem.remedy}",)

    @pytest.mark.parametrize("problem", list(Problem))
    def test_optional_secrets(self, problem: Problem) -> None:
        """An optional one may be absent or empty; any other problem still refuses."""
        vm = VmConfig(name="web", credentials={"K": CredentialConfig(secret="k", required=False)})
        result = desired(vm, snapshot(k=problem), Fingerprints(KEY), None)
        assert isinstance(result, Desired) == (problem in {Problem.ABSENT, Problem.EMPTY, Problem.NO_FIELD})


@pytest.mark.parametrize("active", ["active", "activating", "failed"])
def test_a_unit_that_fails_over_and_over(active: str) -> None:
    """Whatever it is at the moment of a look, it is down: put back, or started on something newer."""
    flapping = replace(unit(active), restarts=2, active_seconds=0.1)
    attempt = Attempt(NEW, Outcome.RESTARTING, previous=1)
    decision = decide(observed(sealed=manifest(NEW), state=flapping, attempt=attempt), grace_over=False)
    assert (decision.state, decision.roll_back) == (State.FAILED, True)
    attempt = Attempt(OLD, Outcome.RESTARTING, previous=1)
    decision = decide(observed(sealed=manifest(OLD), state=flapping, attempt=attempt), grace_over=False)
    assert (decision.state, decision.restart) == (State.RESTART_DUE, True)


def test_another_key_just_after_a_start() -> None:
    """What evidence of another key stands for is written down at once: a change may come meanwhile."""
    decision = decide(observed(state=unit(), left=kept(OF_ANOTHER_KEY)), grace_over=False)
    assert decision.assume == Assumed(INVOCATION, NEW)
    now = observed(
        sealed=manifest(NEW), state=unit(), left=kept(OF_ANOTHER_KEY), assumed=Assumed(INVOCATION, OLD)
    )
    assert decide(now).state is State.RESTART_DUE


def test_another_key() -> None:
    """What evidence of another host key stands for is not known: nothing is restarted for it."""
    now = observed(sealed=manifest(NEW), state=unit(), left=kept(OF_ANOTHER_KEY))
    decision = decide(now)
    assert (decision.state, decision.restart) == (State.IN_STEP, False)
    assert decision.assume == Assumed(INVOCATION, NEW, 1)


@pytest.mark.parametrize(("digest", "state"), [(NEW, State.IN_STEP), (OLD, State.RESTART_DUE)])
def test_another_key_and_what_was_written_down(digest: str, state: State) -> None:
    """Where it was written down in terms of the key that is now, that holds."""
    written = Assumed(INVOCATION, digest)
    now = observed(sealed=manifest(NEW), state=unit(), left=kept(OF_ANOTHER_KEY), assumed=written)
    assert decide(now).state is state


class TestLimits:
    """A generation that the way into the guest would cut or refuse is not sealed."""

    @staticmethod
    def decision(size: int, *, systemd: int = 252, other: int = 0) -> Decision:
        """The decision for a VM with one secret of so many bytes, whose running stamp tells of others."""
        vm = VmConfig(name="web", guest_systemd=systemd, credentials={"KEY": CredentialConfig(secret="k")})
        wanted = desired(vm, snapshot(k=Secret(b"x" * size)), Fingerprints(KEY), None)
        report = hint(other=other)
        return decide(Observed(vm, wanted, None, unit(), kept(OLD), None, None, hint=report))

    def test_old_guests(self) -> None:
        """4,091 bytes with prefix, name, Base64 and NUL, less what others need; one over is named."""
        # 29 for the prefix, 4 for "KEY=", 1 for the NUL; 4,056 characters hold 3,042 bytes.
        assert self.decision(3042).state is State.RESTART_DUE
        over = self.decision(3043)
        assert over.state is State.REFUSED
        assert over.reasons[0].startswith("KEY: ")
        assert "4091" in over.reasons[0]
        assert "guest_systemd = 257" in over.reasons[0]
        assert self.decision(3042, other=60).state is State.REFUSED

    def test_new_guests(self) -> None:
        """With 257 the API's body is the limit."""
        assert self.decision(36_000, systemd=257).state is State.RESTART_DUE
        assert "API" in self.decision(37_000, systemd=257).reasons[0]

    @pytest.mark.parametrize(
        ("size", "state"),
        [(700_000, State.RESTART_DUE), (800_000, State.REFUSED)],
        ids=["fits", "too large"],
    )
    def test_the_initrd(self, size: int, state: State) -> None:
        """What is sealed for the guest counts for its initrd's limit, and for no OEM strings' one."""
        credentials = {"KEY": CredentialConfig(secret="k"), "T": CredentialConfig(text="t" * 3000)}
        vm = VmConfig(name="web", guest_key=True, initrd=True, credentials=credentials)
        wanted = desired(vm, snapshot(k=Secret(b"x" * size)), Fingerprints(KEY), GUEST)
        decision = decide(Observed(vm, wanted, None, unit(), kept(OLD), None, None))
        assert decision.state is state
        assert state is State.RESTART_DUE or "1048576 bytes" in decision.reasons[0]


def test_configuration_reaches_the_decision() -> None:
    """The example of the README parses and asks for what it says."""
    config: Config = parse(
        b'[vms.test-vm.credentials]\nAPI_KEY = { secret = "api-key" }\nENVIRONMENT = { text = "test" }\n',
        DEFAULT_PATH,
    )
    result = desired(config.vm("test-vm"), snapshot(**{"api-key": Secret(b"v")}), Fingerprints(KEY), None)
    assert isinstance(result, Desired)
    assert {entry.name: entry.kind.value for entry in result.entries} == {
        "API_KEY": "plain",
        "ENVIRONMENT": "text",
    }


def seen(
    wanted: Desired | Refused = WANTED,
    sealed: Manifest | None = None,
    state: UnitState | None = None,
    left: Evidence | None = None,
    assumed: Assumed | None = None,
    attempt: Attempt | None = None,
    vm: VmConfig = VM,
    *,
    reported: bool = True,
    held: bool = False,
) -> Observed:
    """Everything about a VM whose launcher has reported, or not."""
    return Observed(
        vm, wanted, sealed, state, left, assumed, attempt, held=held, hint=hint() if reported else None
    )


def went(digest: str, outcome: Outcome, previous: int = 7, **more: Any) -> Attempt:  # noqa: ANN401 (its fields)
    """A restart that was noted."""
    return Attempt(digest, outcome, "it broke", previous=previous, **more)


REFUSED = Refused(("it is absent",), passing=True)
GONE_SECRET = Refused(("x",))
LARGE = Desired(NEW, (), {"K": Secret(b"v" * 4000)}, VM.delivery)
FULL_VM = msgspec.structs.replace(VM, credentials={"Kxxx": CredentialConfig(secret="k")})
FULL = Desired(NEW, (), {"Kxxx": Secret(b"v" * 3042)}, VM.delivery)
"""Its one OEM string takes 4,091 bytes with its NUL."""
CHECKED, IGNORED, HELD, ASKS = (
    msgspec.structs.replace(VM, **setting)
    for setting in (
        {"health": True},
        {"policy": Policy.IGNORE},
        {"policy": Policy.HOLD},
        {"policy": Policy.APPROVE},
    )
)
SEALED, BEHIND, NEWER_DELIVERY = manifest(NEW), manifest(OLD), manifest(NEW, Delivery(guest_systemd=257))
UP, DOWN, GONE = unit(), unit("failed"), unit("inactive")
FLAPPING = replace(UP, restarts=2)
AGAIN = replace(unit("activating"), sub="auto-restart")
NAMELESS = replace(DOWN, invocation_id="")
MUTE = replace(UP, keeps_evidence=False)
SEAL = Decision(VM, State.SEAL_DUE, seal=WANTED)
IN_STEP = Decision(VM, State.IN_STEP)
RESTART = Decision(VM, State.RESTART_DUE, way=Way.RESTART)
FAILED = Decision(VM, State.FAILED)
BACK = replace(FAILED, roll_back=True)
KEPT = Decision(VM, State.REFUSED)
AWAY = replace(KEPT, roll_back=True)
WAS_OLD = Assumed(INVOCATION, OLD, 1)

R, F, B = Outcome.RESTARTING, Outcome.FAILED, Outcome.ROLLED_BACK
SITUATIONS: dict[str, tuple[Observed, bool, Decision, str]] = {
    "refused for a while": (
        seen(REFUSED, BEHIND, UP, kept(OLD)), True, replace(KEPT, look_again=True), "absent",
    ),
    "refused, and down by us": (
        seen(REFUSED, SEALED, DOWN, attempt=went(NEW, R)), True, replace(AWAY, look_again=True), "absent",
    ),
    "refused, with nothing to go back to": (
        seen(Refused(("x",)), SEALED, DOWN, attempt=went(NEW, R, 0)), True, KEPT, "x",
    ),
    "refused, and put back": (seen(Refused(("x",)), SEALED, DOWN, attempt=went(NEW, B)), True, KEPT, "x"),
    "refused, and halted": (
        seen(Refused(("x",)), SEALED, DOWN, attempt=went(NEW, Outcome.HALTED)), True, KEPT, "x",
    ),
    "refused, systemd not asked": (seen(Refused(("x",)), SEALED, attempt=went(NEW, R)), True, KEPT, "x"),
    "refused, and up after some starts": (
        seen(Refused(("x",)), SEALED, FLAPPING, attempt=went(NEW, R), reported=False), True, KEPT, "x",
    ),
    "refused, and came up well": (
        seen(GONE_SECRET, SEALED, UP, kept(NEW), attempt=went(NEW, R, before=OTHER)), True,
        replace(KEPT, forget=True), "x",
    ),
    "refused, and came up on something newer": (
        seen(GONE_SECRET, SEALED, UP, kept(NEW), attempt=went(OLD, R, before=OTHER)), True,
        replace(KEPT, forget=True), "x",
    ),
    "refused, and came up without evidence": (
        seen(GONE_SECRET, SEALED, UP, attempt=went(NEW, R, before=OTHER)), True,
        replace(KEPT, forget=True), "x",
    ),
    "refused, and came up a moment ago": (
        seen(GONE_SECRET, SEALED, UP, kept(NEW), attempt=went(NEW, R, before=OTHER), reported=False), False,
        replace(KEPT, look_again=True), "x",
    ),
    "refused before its restart began": (
        seen(GONE_SECRET, SEALED, UP, kept(OLD), attempt=went(NEW, R, before=INVOCATION)), True, KEPT, "x",
    ),
    "refused, and to be found healthy": (
        seen(GONE_SECRET, SEALED, UP, kept(NEW), attempt=went(NEW, R, before=OTHER), vm=CHECKED), True,
        Decision(CHECKED, State.REFUSED, prove=True), "x",
    ),
    "refused, and to be found healthy, with no report": (
        seen(GONE_SECRET, SEALED, UP, kept(NEW), attempt=went(NEW, R, before=OTHER), vm=CHECKED,
             reported=False),
        True, Decision(CHECKED, State.REFUSED, prove=True), "x",
    ),
    "refused, and about to stop before its health is known": (
        seen(GONE_SECRET, SEALED, unit(job=True), kept(NEW), attempt=went(NEW, R, before=OTHER), vm=CHECKED),
        True, Decision(CHECKED, State.REFUSED), "x",
    ),
    "without its pair, and came up well": (
        seen(Unpaired(("x",)), SEALED, UP, kept(NEW), attempt=went(NEW, R, before=OTHER)), True,
        Decision(VM, State.WAITING, forget=True), "x",
    ),
    "without its pair, and came up with no report": (
        seen(Unpaired(("x",)), SEALED, UP, kept(NEW), attempt=went(NEW, R, before=OTHER), reported=False),
        True, Decision(VM, State.WAITING, forget=True), "x",
    ),
    "too large, and came up well on what was before": (
        seen(LARGE, BEHIND, UP, kept(OLD), attempt=went(OLD, R, before=OTHER)), True,
        replace(KEPT, forget=True), "4091 bytes",
    ),
    "held, and to be found healthy": (
        seen(WANTED, SEALED, UP, kept(OLD), attempt=went(OLD, R, before=OTHER), vm=CHECKED, held=True), True,
        Decision(CHECKED, State.HELD, prove=True), "operator",
    ),
    "due before it was found healthy": (
        seen(WANTED, SEALED, UP, kept(OLD), attempt=went(OLD, R, before=OTHER), vm=CHECKED), True,
        Decision(CHECKED, State.RESTART_DUE, way=Way.RESTART, prove=True), "",
    ),
    "too large, and down by us": (seen(LARGE, BEHIND, DOWN, attempt=went(NEW, R)), True, AWAY, "4091 bytes"),
    "too large, and up after some starts": (
        seen(LARGE, BEHIND, FLAPPING, attempt=went(NEW, R), reported=False), True, KEPT, "4091 bytes",
    ),
    "at the limit, with no report": (
        seen(FULL, BEHIND, UP, kept(OLD), vm=FULL_VM, reported=False), True,
        Decision(FULL_VM, State.RESTART_DUE, seal=FULL, way=Way.RESTART), "",
    ),
    "too large, and it runs": (seen(LARGE, SEALED, UP, kept(NEW)), True, IN_STEP, ""),
    "too large, and sealed": (seen(LARGE, SEALED, UP, assumed=Assumed(INVOCATION, NEW)), True, IN_STEP, ""),
    "too large, and something else runs": (seen(LARGE, SEALED, UP, kept(OLD)), True, KEPT, "4091 bytes"),
    "too large, and not sealed": (seen(LARGE, BEHIND, UP), True, KEPT, "4091 bytes"),
    "too large for another delivery": (seen(LARGE, NEWER_DELIVERY, UP), True, KEPT, "4091 bytes"),
    "failed, systemd not asked": (seen(WANTED, BEHIND, attempt=went(NEW, F)), True, IN_STEP, ""),
    "another failed, systemd not asked": (seen(WANTED, BEHIND, attempt=went(OLD, F)), True, SEAL, ""),
    "under way, systemd not asked": (seen(WANTED, BEHIND, attempt=went(NEW, R)), True, SEAL, ""),
    "no unit": (
        seen(WANTED, BEHIND, unit(load="not-found")), True, replace(SEAL, state=State.NO_UNIT), VM.unit,
    ),
    "a job": (
        seen(WANTED, BEHIND, unit(job=True), kept(OLD)), True,
        replace(SEAL, state=State.CHANGING, look_again=True), "",
    ),
    "down, and to be tried again": (
        seen(WANTED, SEALED, DOWN, attempt=went(NEW, Outcome.RETRY)), True, RESTART, "",
    ),
    "down before its restart began": (
        seen(WANTED, SEALED, DOWN, attempt=went(NEW, R, before=INVOCATION)), True, RESTART, "",
    ),
    "down after its restart began": (
        seen(WANTED, SEALED, DOWN, attempt=went(NEW, R, before=OTHER)), True, BACK, "interrupted",
    ),
    "down, and never started": (
        seen(WANTED, SEALED, NAMELESS, attempt=went(NEW, R)), True, BACK, "interrupted",
    ),
    "stopped before its restart began": (
        seen(WANTED, SEALED, GONE, attempt=went(NEW, R, before=INVOCATION)), True,
        Decision(VM, State.STOPPED, forget=True), "",
    ),
    "stopped after a failure": (
        seen(WANTED, SEALED, GONE, attempt=went(OLD, F)), True, Decision(VM, State.STOPPED), "",
    ),
    "just started": (
        seen(WANTED, BEHIND, UP, reported=False), False,
        replace(SEAL, state=State.CHANGING, assume=WAS_OLD, look_again=True), "",
    ),
    "to be found healthy": (
        seen(WANTED, NEWER_DELIVERY, UP, kept(NEW), attempt=went(NEW, R), vm=CHECKED), True,
        Decision(CHECKED, State.CHANGING, seal=WANTED, prove=True), "",
    ),
    "to be found healthy, without evidence": (
        seen(WANTED, SEALED, UP, None, Assumed(INVOCATION, NEW), went(NEW, R, before=OTHER), CHECKED), True,
        Decision(CHECKED, State.CHANGING, prove=True), "",
    ),
    "started on something newer than the restart that was under way": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(OLD, R, before=OTHER)), True,
        replace(IN_STEP, forget=True), "",
    ),
    "started on something newer, and to be found healthy": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(OLD, R, before=OTHER), vm=CHECKED), True,
        Decision(CHECKED, State.CHANGING, prove=True), "",
    ),
    "never began, its change was taken back, and its health is of no interest": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(OLD, R, before=INVOCATION), vm=CHECKED), True,
        Decision(CHECKED, State.IN_STEP, forget=True), "",
    ),
    "started on something newer, which may be short": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(OLD, R), reported=False), False,
        Decision(VM, State.CHANGING, look_again=True), "",
    ),
    "before its restart began, and its change was taken back": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(OLD, R, before=INVOCATION)), True,
        replace(IN_STEP, forget=True), "",
    ),
    "in step, and another change to be tried again": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(OLD, Outcome.RETRY)), True, IN_STEP, "",
    ),
    "ignored": (
        seen(WANTED, BEHIND, UP, vm=IGNORED, reported=False), True,
        Decision(IGNORED, State.IGNORED, seal=WANTED, assume=WAS_OLD), "",
    ),
    "held by its policy": (
        seen(WANTED, BEHIND, UP, vm=HELD, held=True), True,
        Decision(HELD, State.HELD, seal=WANTED, assume=WAS_OLD), "policy",
    ),
    "held by an operator": (
        seen(WANTED, BEHIND, UP, held=True), True,
        replace(SEAL, state=State.HELD, assume=WAS_OLD), "operator",
    ),
    "to be approved once it is sealed": (
        seen(WANTED, BEHIND, UP, vm=ASKS), True,
        Decision(ASKS, State.APPROVAL, seal=WANTED, assume=WAS_OLD), "about to be sealed",
    ),
    "to be approved": (
        seen(WANTED, SEALED, UP, kept(OLD), vm=ASKS), True, Decision(ASKS, State.APPROVAL),
        f"credferry approve web --run {SEALED.run}",
    ),
    "without a way to keep evidence": (
        seen(WANTED, BEHIND, MUTE), True, replace(SEAL, state=State.REFUSED, assume=WAS_OLD), "drop-in",
    ),
    "due": (
        seen(WANTED, BEHIND, UP), True,
        replace(SEAL, state=State.RESTART_DUE, way=Way.RESTART, assume=WAS_OLD), "",
    ),
    "due, and its restart under way": (
        seen(WANTED, SEALED, UP, kept(OLD), attempt=went(NEW, R)), True, RESTART, "",
    ),
    "halted": (
        seen(WANTED, BEHIND, UP, kept(OLD), attempt=went(NEW, Outcome.HALTED)), True,
        replace(SEAL, state=State.HALTED), "broke",
    ),
    "found unhealthy": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(NEW, F), vm=CHECKED), True,
        replace(BACK, vm=CHECKED), "broke",
    ),
    "came right, with no report": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(NEW, F), reported=False), True,
        IN_STEP, NOT_REPORTED,
    ),
    "came right just now": (seen(WANTED, SEALED, UP, kept(NEW), attempt=went(NEW, F)), False, IN_STEP, ""),
    "not known yet to have come right": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(NEW, F), reported=False), False, BACK, "broke",
    ),
    "up after some starts": (
        seen(WANTED, SEALED, FLAPPING, attempt=went(NEW, R), reported=False), True,
        replace(IN_STEP, assume=Assumed(INVOCATION, NEW, 1)), NOT_REPORTED,
    ),
    "started again by systemd": (
        seen(WANTED, SEALED, AGAIN, attempt=went(NEW, R)), True, BACK, "interrupted",
    ),
    "interrupted, with nothing to go back to": (
        seen(WANTED, SEALED, DOWN, attempt=went(NEW, R, 0)), True,
        Decision(VM, State.RESTART_DUE, way=Way.RESTART), "",
    ),
    "failed, and the first to go back to": (
        seen(WANTED, SEALED, DOWN, attempt=went(NEW, F, 1)), True, BACK, "broke",
    ),
    "put back by an operator": (
        seen(WANTED, BEHIND, UP, kept(OLD), attempt=went(NEW, B, by_operator=True)), True,
        Decision(VM, State.ROLLED_BACK), "broke",
    ),
    "put back by an operator, and down": (
        seen(WANTED, BEHIND, DOWN, attempt=went(NEW, B, by_operator=True)), True, FAILED, "broke",
    ),
    "done just now": (
        seen(WANTED, SEALED, UP, kept(NEW), attempt=went(NEW, R)), False, replace(IN_STEP, forget=True), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("now", "grace_over", "whole", "said"), SITUATIONS.values(), ids=SITUATIONS.keys())
def test_a_decision_is_nothing_more(now: Observed, grace_over: bool, whole: Decision, said: str) -> None:
    """Each situation has all of its decision and nothing beside it; where it has a reason, it says that."""
    decision = decide(now, grace_over=grace_over)
    assert replace(decision, reasons=()) == whole
    assert bool(decision.reasons) is bool(said)
    assert said in "".join(decision.reasons)


@pytest.mark.parametrize(
    ("wanted", "sealed", "evidence", "assumed", "is_evidence"),
    [
        (WANTED, None, OLD, NEW, True),
        (WANTED, None, OF_ANOTHER_KEY, OLD, False),
        (WANTED, manifest(OF_ANOTHER_KEY), OF_ANOTHER_KEY, OLD, False),
        (REFUSED, SEALED, OF_ANOTHER_KEY, OLD, False),
        (REFUSED, None, OF_ANOTHER_KEY, OLD, True),
        (REFUSED, manifest(OF_ANOTHER_KEY), OF_ANOTHER_KEY, OLD, True),
    ],
)
def test_what_runs_is_told_in_terms_of_the_present_key(
    wanted: Desired | Refused, sealed: Manifest | None, evidence: str, assumed: str, is_evidence: bool
) -> None:
    """Evidence goes before what was written down, but not where it is of another key of the host."""
    now = seen(wanted, sealed, UP, kept(evidence), Assumed(INVOCATION, assumed))
    assert now.runs is (now.evidence if is_evidence else now.assumed)
