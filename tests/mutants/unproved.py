# SPDX-License-Identifier: MIT
"""Tests that SECURITY.md names and that no row of the table has yet, each with the reason.

Nothing shows that such a test notices the loss of its protection. The list is to become empty.
"""

from __future__ import annotations

from typing import Final

_HOST: Final = "no row yet: only a booted host shows it"
_GUEST: Final = "no row yet: only a booted guest shows it"

UNPROVED: Final = {
    "tests/host/test_audit.py::test_a_launcher_is_believed_by_its_unit": _HOST,
    "tests/host/test_audit.py::test_only_who_may_say_so_is_believed": _HOST,
    "tests/host/test_bad_input.py::test_a_key_that_others_can_read": _HOST,
    "tests/host/test_bad_input.py::test_the_key_of_another_machine": _HOST,
    "tests/host/test_canary.py::test_no_path_leaks": _HOST,
    "tests/host/test_control.py::test_a_group_reads_and_root_rules": _HOST,
    "tests/host/test_control.py::test_another_owner_of_the_name": _HOST,
    "tests/host/test_control.py::test_signals_tell_a_rotation": _HOST,
    "tests/host/test_control.py::test_status_for_members_of_the_group": _HOST,
    "tests/host/test_doctor.py::test_the_judgement_runs_nothing_that_a_vms_user_could_have_written": _HOST,
    "tests/host/test_forger.py::test_a_rollback_goes_by_evidence": _HOST,
    "tests/host/test_forger.py::test_rotations_go_on_under_a_forger": _HOST,
    "tests/host/test_hostile_files.py::test_the_doctor_opens_nothing_for_a_vm_s_user": _HOST,
    "tests/host/test_hostile_files.py::test_the_doctor_runs_no_program_that_is_not_root_s": _HOST,
    "tests/host/test_hostile_files.py::test_the_store_keeps_no_verb_waiting": _HOST,
    "tests/host/test_least_privilege.py::test_a_crash_leaves_no_core": _HOST,
    "tests/host/test_least_privilege.py::test_a_vmm_sees_no_neighbour_s_credentials": _HOST,
    "tests/host/test_least_privilege.py::test_exposure": _HOST,
    "tests/host/test_least_privilege.py::test_memory_is_out_of_reach": _HOST,
    "tests/host/test_least_privilege.py::test_root_is_not_led_astray": _HOST,
    "tests/host/test_least_privilege.py::test_the_launcher_s_child_is_out_of_reach": _HOST,
    "tests/host/test_least_privilege.py::test_the_store_is_root_s_and_the_agent_s": _HOST,
    "tests/host/test_least_privilege.py::test_the_unit_is_believed_and_not_its_user": _HOST,
    "tests/host/test_readiness.py::test_a_key_of_another_user": _HOST,
    "tests/host/test_root_helpers.py::test_a_directory_that_the_user_can_change_is_refused": _HOST,
    "tests/host/test_root_helpers.py::test_a_socket_elsewhere_is_refused": _HOST,
    "tests/host/test_root_helpers.py::test_shares_are_served_from_a_directory_of_roots": _HOST,
    "tests/host/test_root_helpers.py::test_the_users_own_directory_decides_nothing": _HOST,
    "tests/host/test_rotation.py::test_a_missing_secret_keeps_the_vm_running": _HOST,
    "tests/guest/test_main_job.py::test_a_guest_that_reboots_gets_the_newest_values": _GUEST,
    "tests/guest/test_main_job.py::test_guests_get_what_is_published": _GUEST,
    "tests/guest/test_standin.py::test_a_guest_without_the_key_tells_that_a_sealed_value_stays_shut": _GUEST,
    "tests/unit/agent/test_store.py::test_what_the_agent_s_user_can_plant_is_taken_for_nothing": (
        "no row yet: without the guarded open, the test waits at the FIFO"
    ),
}
