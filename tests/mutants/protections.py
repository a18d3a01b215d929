# SPDX-License-Identifier: MIT
"""The protections that SECURITY.md names: how each is taken out, and the tests that must fail then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that stands exactly once in a file, and what takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection. Without it, each of these tests must fail.

    ``tests`` are SECURITY.md's: each test that the page names stands here at least once.
    """

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


PROTECTIONS: Final = (
    Protection(
        "the launcher refuses another VM's credentials",
        (
            Edit(
                "launcher/plan.py",
                "if named is not None and named != delivered.manifest.vm:",
                "if False:",
            ),
        ),
        (
            "tests/unit/launcher/test_main.py::test_another_vms_credentials_are_refused_without_being_told_the_name",
        ),
    ),
    Protection(
        "plaintext stays out of argument vectors",
        (
            Edit(
                "launcher/plan.py",
                "if delivery.channel is Channel.COMMAND and not delivery.plaintext_in_argv:",
                "if False:",
            ),
        ),
        (
            "tests/unit/launcher/test_process.py::test_the_vm_is_created_over_the_api_and_nothing_secret_is_in_an_argument_vector",
        ),
    ),
    Protection(
        "a powerful name must be allowed",
        (
            Edit(
                "launcher/oem.py",
                "if is_powerful_name(name) and name not in delivery.allowed_names:",
                "if False:",
            ),
        ),
        ("tests/unit/agent/test_config.py::test_powerful_names_can_be_allowed",),
    ),
    Protection(
        "each user of the bus has a limit of calls, and root has none",
        (
            Edit(
                "agent/admission.py",
                "if uid != _ROOT and (self._under_way[uid] >= PER_USER or others >= OF_ALL):",
                "if self._under_way.total() >= OF_ALL:",
            ),
        ),
        (
            "tests/host/test_control.py::test_a_member_cannot_lock_root_out",
            "tests/unit/agent/test_admission.py::test_many_users_together_have_a_limit_and_root_has_none",
        ),
    ),
    Protection(
        "the audit has the user that the bus tells",
        (Edit("agent/control.py", "Operator.of_user(caller.uid, reason)", "Operator.of_user(0, reason)"),),
        ("tests/host/test_control.py::test_the_bus_says_who_orders",),
    ),
    Protection(
        "a spreadsheet finds no formula",
        (
            Edit(
                "agent/printable.py",
                'return f"\'{text}" if text.lstrip().startswith(_FORMULAS) else text',
                "return text",
            ),
        ),
        (
            "tests/host/test_audit.py::test_what_a_vm_says_acts_on_no_reader",
            "tests/property/test_printable.py::test_every_form_of_the_audit",
        ),
    ),
    Protection(
        "a terminal obeys no record",
        (Edit("agent/cli/terminal.py", "{printable(line)}", "{line}"),),
        (
            "tests/host/test_audit.py::test_what_a_vm_says_acts_on_no_reader",
            "tests/property/test_printable.py::test_every_form_of_the_audit",
        ),
    ),
    Protection(
        "the page has no control characters",
        (
            Edit(
                "agent/timeline.py",
                'return printable_lines("\\n".join(lines)) + "\\n"',
                'return "\\n".join(lines) + "\\n"',
            ),
        ),
        (
            "tests/host/test_audit.py::test_what_a_vm_says_acts_on_no_reader",
            "tests/property/test_printable.py::test_every_form_of_the_audit",
        ),
    ),
    Protection(
        "polkit grants no verb that starts a stopped VM",
        (Edit("agent/polkit.py", '_RESTARTS = ("try-restart",)', '_RESTARTS = ("try-restart", "restart")'),),
        (
            "tests/host/test_least_privilege.py::test_polkit_grants_no_more",
            "tests/host/test_least_privilege.py::test_a_stopped_vm_stays_stopped",
        ),
    ),
    Protection(
        "root's unit starts only what has failed",
        (
            Edit(
                "contrib/systemd/credferry-restart@.service",
                "ExecCondition=/usr/bin/systemctl --quiet is-failed -- %I\n",
                "",
            ),
        ),
        ("tests/host/test_least_privilege.py::test_a_stopped_vm_stays_stopped",),
    ),
    Protection(
        "polkit lets root's unit start what has failed",
        (
            Edit(
                "agent/polkit.py",
                "granted |= {restart_unit(vm.unit): _STARTS for vm in config.vms.values()}",
                "pass",
            ),
        ),
        ("tests/host/test_least_privilege.py::test_a_vm_that_its_restart_left_failed",),
    ),
    Protection(
        "polkit lets the agent's user restart what runs",
        (Edit("agent/polkit.py", '_RESTARTS = ("try-restart",)', "_RESTARTS = ()"),),
        ("tests/host/test_least_privilege.py::test_what_polkit_cannot_narrow",),
    ),
    Protection(
        "a health check may be started where there is one",
        (
            Edit(
                "agent/polkit.py",
                " for vm in config.vms.values() if vm.health}",
                " for vm in config.vms.values()}",
            ),
        ),
        ("tests/host/test_least_privilege.py::test_a_health_check_may_be_started_where_there_is_one",),
    ),
    Protection(
        "the launcher takes no value that is not its manifest's",
        (Edit("launcher/credentials.py", "if not manifest.holds(entry, value):", "if False:"),),
        ("tests/unit/launcher/test_main.py::test_a_value_of_somewhere_else_is_refused",),
    ),
    Protection(
        "the agent takes no value that is not its manifest's",
        (Edit("agent/store.py", "if not manifest.holds(entry, value):", "if False:"),),
        ("tests/unit/agent/test_store.py::test_a_single_file_of_somewhere_else_is_refused",),
    ),
    Protection(
        "evidence of starts is root's",
        (Edit("agent/evidence.py", "owners=_trusted(), ", ""),),
        ("tests/unit/agent/test_evidence.py::test_files_and_directories_of_others_count_as_none",),
    ),
    Protection(
        "evidence alone says what a VM runs",
        (
            Edit(
                "agent/reconcile.py",
                "known = (now.evidence, now.assumed)",
                "known = (now.hint, now.assumed)",
            ),
        ),
        (
            "tests/unit/agent/test_reconcile.py::test_a_report_does_not_say_what_runs",
            "tests/host/test_forger.py::test_a_forged_stamp_changes_nothing",
        ),
    ),
    Protection(
        "a launcher's report that is gone is no failed start",
        (
            Edit(
                "agent/reconcile.py",
                "if now.unit.is_flapping and now.hint is None and not grace_over:",
                "if now.unit.is_flapping and now.hint is None:",
            ),
        ),
        ("tests/unit/agent/test_reconcile.py::test_a_report_that_is_gone_rolls_nothing_back",),
    ),
    Protection(
        "a launcher's report is opened as a file of somebody else's",
        (
            Edit(
                "agent/observe.py",
                "read_untrusted(known.stamp_path, limit=_STAMP_SIZE_MAX, below=runtime)",
                "known.stamp_path.read_bytes()",
            ),
        ),
        ("tests/host/test_forger.py::test_what_is_no_stamp_changes_nothing",),
    ),
    Protection(
        "nobody but root reads evidence",
        (Edit("contrib/systemd/credferry-vm.conf", "install -D -m 0600", "install -D -m 0644"),),
        ("tests/host/test_forger.py::test_evidence_is_out_of_reach",),
    ),
)
