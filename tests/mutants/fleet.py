# SPDX-License-Identifier: MIT
"""The protections of a fleet: how each is taken out, and the tests that must fail then."""

from __future__ import annotations

from typing import Final

from tests.mutants.row import Edit, Protection

_ETCD: Final = "tests/unit/agent/fleet/test_etcd.py"
_CLUSTER: Final = "tests/unit/agent/fleet/test_cluster.py"
_GATEWAY: Final = "tests/unit/agent/fleet/test_gateway.py"
_ROLLOUT: Final = "tests/unit/agent/test_fleet_rollout.py"
_HALTS: Final = "tests/unit/agent/test_fleet_halts.py"
_ORDERS: Final = "tests/unit/agent/test_fleet_orders.py"
_TRANSACTIONS: Final = "tests/unit/agent/fleet/test_transactions.py"
_FORMS: Final = "tests/unit/agent/fleet/test_forms.py"

FLEET: Final = (
    Protection(
        "a VM of a fleet is restarted, or gets its push, only with a slot",
        (
            Edit(
                "agent/rollout/rollout.py",
                "        if not self.slots.claim(vm, run):\n            return None",
                "        if self.slots.claim(vm, run) is None:\n            return None",
            ),
        ),
        (f"{_ROLLOUT}::test_a_vm_waits_for_a_slot_and_says_for_whom",),
    ),
    Protection(
        "a change that fails on a VM halts its group, also after a crash",
        (
            Edit(
                "agent/rollout/restarter.py",
                "        self.pacer.slots.failed(vm, attempt.run, failure(attempt))\n",
                "        failure(attempt)\n",
            ),
        ),
        (f"{_ROLLOUT}::test_a_failure_halts_the_group_and_keeps_the_slot",),
    ),
    Protection(
        "a VM that fails in a halted group halts it once the other halt ends",
        (Edit("agent/rollout/fleet_halts.py", "if not isinstance(found, Unavailable | Halted)", "if True"),),
        (f"{_HALTS}::test_a_vm_that_gets_well_leaves_the_halt_of_another",),
    ),
    Protection(
        "a halt outlasts a reload that gives the host or the group another name",
        (Edit("agent/rollout/fleet.py", "if claim is not None and claim.halt else", "if None else"),),
        (f"{_HALTS}::test_a_halt_outlasts_a_reload_with_other_names",),
    ),
    Protection(
        "a search takes nothing from a VM whose records cannot be read",
        (Edit("agent/rollout/strays.py", "  return None", "  return _Records(None, None)"),),
        (f"{_HALTS}::test_a_search_takes_nothing_from_a_vm_whose_records_cannot_be_read",),
    ),
    Protection(
        "a slot that is found again is written anew, so that a late release does not remove it",
        (
            Edit(
                "agent/fleet/transactions.py",
                '"success": [put], "failure": _reads(group.name)}',
                '"success": [], "failure": _reads(group.name)}',
            ),
        ),
        (f"{_TRANSACTIONS}::test_a_late_release_does_not_remove_a_slot_that_is_kept",),
    ),
    Protection(
        "a claim is on disk before the fleet is asked for a slot",
        (
            Edit(
                "agent/rollout/fleet.py",
                "self.store.record_claim(name, Claim(group, self.me.host, change",
                "str(Claim(group, self.me.host, change",
            ),
        ),
        (f"{_ROLLOUT}::test_a_full_disk_takes_no_slot",),
    ),
    Protection(
        "what an order was given is not taken back before its worker begins",
        (Edit("agent/rollout/fleet.py", "self._is_for_order(name) and is_ordered(name)", "False"),),
        (
            f"{_ORDERS}::test_an_order_that_gets_no_slot_ends",
            f"{_ORDERS}::test_an_order_that_gets_a_slot_ends",
        ),
    ),
    Protection(
        "the agent takes a slot only if it is free, its group is not halted, and the limit is unchanged",
        (
            Edit(
                "agent/fleet/transactions.py",
                "    compare = [_is_absent(slot), _is_absent(keys.halt_key(group.name))]\n",
                "    compare = []\n",
            ),
        ),
        ("tests/unit/agent/fleet/test_transactions.py::test_a_slot_is_never_taken_beyond_the_limit",),
    ),
    Protection(
        "a release removes only the slot of the revision that it names",
        (
            Edit(
                "agent/fleet/transactions.py",
                '    key = keys.slot_key(group, number)\n    return {"compare": [_is_at(key, revision)], ',
                '    key = keys.slot_key(group, number)\n    return {"compare": [], ',
            ),
        ),
        (f"{_ETCD}::test_a_release_that_arrives_after_the_slot_was_found_again",),
    ),
    Protection(
        "of two machines with one name, the second gets no slot",
        (Edit("agent/fleet/deciding.py", "if each.holder.is_twin_of(holder):", "if False:"),),
        (f"{_ETCD}::test_two_machines_with_one_host_name",),
    ),
    Protection(
        "a slot that cannot be read counts as held",
        (
            Edit(
                "agent/fleet/deciding.py",
                "if len(group.held) >= group.limit.number:",
                "if len(group.slots) >= group.limit.number:",
            ),
        ),
        (f"{_ETCD}::test_garbage_is_held_until_an_operator_frees_it",),
    ),
    Protection(
        "a halt that cannot be read halts the group",
        (
            Edit(
                "agent/fleet/deciding.py",
                "if group.halt is not None and (",
                'if getattr(group.halt, "why", "") and (',
            ),
        ),
        (f"{_ETCD}::test_an_unreadable_halt_halts",),
    ),
    Protection(
        "a limit that cannot be read gives no slot",
        (
            Edit(
                "agent/fleet/forms.py",
                "        return BadLimit(revision)\n",
                "        return Limit(1, revision)\n",
            ),
        ),
        (f"{_ETCD}::test_a_limit_that_is_none",),
    ),
    Protection(
        "what others write into a halt is made printable",
        (
            Edit("agent/fleet/forms.py", "Halt(printable(found.why), ", "Halt(found.why, "),
            Edit("agent/fleet/forms.py", "why=printable(why)[:WHY_MAX]", "why=why[:WHY_MAX]"),
        ),
        (f"{_FORMS}::test_each_halt_can_be_read_again",),
    ),
    Protection(
        "etcd gets neither the machine's ID nor more than the contract says",
        (
            Edit(
                "agent/fleet/model.py",
                "return Mac(machine_id.strip()).of(_PURPOSE).hex()[:32]",
                "return machine_id.decode().strip()[:32]",
            ),
        ),
        (f"{_FORMS}::test_known_machine",),
    ),
    Protection(
        "a slot and a halt have the fields of the contract alone",
        (
            Edit(
                "agent/fleet/forms.py",
                "    since: _Since\n",
                '    since: _Since\n    secret: str = "value"\n',
            ),
        ),
        (f"{_FORMS}::test_known_slot", f"{_FORMS}::test_known_halt"),
    ),
    Protection(
        "a server of the fleet needs a certificate that `ca` has signed",
        (Edit("agent/fleet/transport.py", "    made.verify = tls.ca  #", "    made.verify = False  #"),),
        (f"{_GATEWAY}::test_certificates_that_do_not_fit",),
    ),
    Protection(
        "a redirect of a fleet's server is not followed",
        (
            Edit(
                "agent/fleet/transport.py",
                "if fault is None and response is not None and response.is_redirect:",
                "if False:",
            ),
        ),
        (f"{_GATEWAY}::test_a_redirect_is_not_followed",),
    ),
    Protection(
        "the environment names no proxy for the fleet",
        (Edit("agent/fleet/transport.py", "    made.trust_env = False  #", "    made.trust_env = True  #"),),
        (f"{_GATEWAY}::test_the_environment_has_no_part",),
    ),
    Protection(
        "another cluster's answer is none",
        (
            Edit(
                "agent/fleet/cluster.py",
                "    if now.cluster != known.cluster:\n",
                "    if False:\n",
            ),
        ),
        (
            f"{_ETCD}::test_another_cluster_does_not_count",
            f"{_CLUSTER}::test_another_cluster_gives_no_slot_after_a_restart",
        ),
    ),
    Protection(
        "an etcd that has lost slots gives none, also after a restart of the agent",
        (
            Edit(
                "agent/fleet/cluster.py",
                "    if now.revision < known.revision:\n",
                "    if False:\n",
            ),
        ),
        (f"{_CLUSTER}::test_an_etcd_that_was_made_anew_gives_no_slot",),
    ),
    Protection(
        "what the agent has seen of etcd is known after its restart, too",
        (Edit("agent/fleet/cluster.py", "and kept[1] < seen.revision", "and False"),),
        (
            f"{_CLUSTER}::test_what_was_seen_outlasts_the_agent",
            f"{_ROLLOUT}::test_what_the_agent_has_seen_of_etcd_outlasts_it",
        ),
    ),
    Protection(
        "one member that says it is far ahead does not put all others out of use",
        (Edit("agent/fleet/cluster.py", "now.revision > known.revision + AHEAD_MAX", "False"),),
        (f"{_CLUSTER}::test_a_revision_that_no_etcd_reaches",),
    ),
    Protection(
        "a number of an answer is one that etcd can have",
        (Edit("agent/fleet/transactions.py", "msgspec.Meta(ge=0, le=2**63 - 1)]", "msgspec.Meta()]"),),
        ("tests/unit/agent/fleet/test_transactions.py::test_numbers_that_no_etcd_has",),
    ),
    Protection(
        "an answer must be whole, as etcd's are",
        (
            Edit(
                "agent/fleet/transactions.py",
                "    if len(ranges) != 3:  # noqa: PLR2004 (as `_reads` has)\n",
                "    while len(ranges) < 3:\n        ranges.append(None)\n    if False:\n",
            ),
            Edit(
                "agent/fleet/transactions.py", "    header: Header\n", '    header: Header = Header("1")\n'
            ),
        ),
        (f"{_GATEWAY}::test_what_is_no_etcd",),
    ),
    Protection(
        "no text of a server is repeated",
        (
            Edit(
                "agent/fleet/gateway.py",
                'return EngineFault("it refuses the request", "see etcd\'s log")',
                'return EngineFault(message, "see etcd\'s log")',
            ),
        ),
        (f"{_GATEWAY}::test_nothing_of_a_login_is_repeated",),
    ),
    Protection(
        "an answer of a fleet's server is bounded",
        (Edit("agent/fleet/transport.py", "        if size > ANSWER_MAX:", "        if False:"),),
        (f"{_GATEWAY}::test_answers_that_are_too_large",),
    ),
)
