# SPDX-License-Identifier: MIT
"""The protections that SECURITY.md names: how each is taken out, and the tests that must fail then."""

from __future__ import annotations

from typing import Final

from tests.mutants.at_rest import AT_REST
from tests.mutants.fleet import FLEET
from tests.mutants.on_hosts import ON_HOSTS
from tests.mutants.row import Edit, Protection

PROTECTIONS: Final = (
    Protection(
        "the guest's receiver takes connections from the host only",
        (
            Edit(
                "contrib/guest/credferry-receive",
                "in vsock:2 | vsock:2:*) ;;",
                "in *) ;;",
            ),
        ),
        ("tests/unit/test_receiver.py::test_only_the_host_may_push",),
    ),
    Protection(
        "the guest's receiver refuses blobs of the null key",
        (Edit("contrib/guest/credferry-receive", "fail null-key", ": null-key"),),
        ("tests/unit/test_receiver.py::test_a_guest_with_a_key_refuses_what_is_not_sealed_for_it",),
    ),
    Protection(
        "the guest's receiver refuses an older generation",
        (
            Edit(
                "contrib/guest/credferry-receive",
                '[ "$generation" -ge "$3" ] || fail older',
                ":",
            ),
        ),
        ("tests/unit/test_receiver.py::test_what_a_guest_compares",),
    ),
    Protection(
        "the guest's receiver takes nothing before the commit",
        (
            Edit(
                "contrib/guest/credferry-receive",
                "IFS= read -r line || fail protocol\n        start=",
                "IFS= read -r line || :\n        start=",
            ),
        ),
        ("tests/unit/test_receiver.py::test_a_push_cut_anywhere_changes_nothing",),
    ),
    Protection(
        "the guest's receiver notes what it is about to change",
        (
            Edit(
                "contrib/guest/credferry-receive",
                "mark unsure\nput",
                "put",
            ),
        ),
        ("tests/unit/test_receiver.py::test_a_receiver_that_is_killed_is_made_up_for",),
    ),
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
        ("tests/unit/launcher/test_plan.py::test_readable_secrets_need_a_word_to_be_in_an_argument_vector",),
    ),
    Protection(
        "the launcher refuses a powerful name that is not allowed",
        (
            Edit(
                "launcher/oem.py",
                "if is_powerful_name(name) and name not in delivery.allowed_names:",
                "if False:",
            ),
        ),
        (
            "tests/unit/launcher/test_power.py::test_what_programs_of_the_system_read_is_refused_on_both_sides",
        ),
    ),
    Protection(
        "each user of the bus has a limit of calls, and root has none",
        (
            Edit(
                "agent/control/admission.py",
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
        "a read of properties over the bus counts as a call",
        (
            Edit(
                "agent/bus/published.py",
                "elif not self._server.serve(caller, answer):",
                "elif read:\n                answer()\n"
                "            elif not self._server.serve(caller, answer):",
            ),
        ),
        (
            "tests/host/test_control.py::test_a_member_cannot_lock_root_out",
            "tests/unit/agent/test_bus.py::test_a_read_of_properties_counts_as_a_call",
        ),
    ),
    Protection(
        "the audit has the user that the bus tells",
        (
            Edit(
                "agent/control/objects.py",
                "Operator.of_user(caller.uid, reason)",
                "Operator.of_user(0, reason)",
            ),
        ),
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
        (Edit("agent/cli/terminal.py", "shown = printable(line)", "shown = line"),),
        (
            "tests/host/test_audit.py::test_what_a_vm_says_acts_on_no_reader",
            "tests/property/test_printable.py::test_every_form_of_the_audit",
        ),
    ),
    Protection(
        "the page has no control characters",
        (
            Edit(
                "agent/audit/html.py",
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
        (
            Edit(
                "agent/systemd/polkit.py",
                '_RESTARTS = ("try-restart",)',
                '_RESTARTS = ("try-restart", "restart")',
            ),
        ),
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
                "agent/systemd/polkit.py",
                "granted |= {restart_unit(vm.unit): _STARTS for vm in config.vms.values()}",
                "pass",
            ),
        ),
        ("tests/host/test_least_privilege.py::test_a_vm_that_its_restart_left_failed",),
    ),
    Protection(
        "polkit lets the agent's user restart what runs",
        (Edit("agent/systemd/polkit.py", '_RESTARTS = ("try-restart",)', "_RESTARTS = ()"),),
        ("tests/host/test_least_privilege.py::test_what_polkit_cannot_narrow",),
    ),
    Protection(
        "a push may be started where a VM is live",
        (
            Edit(
                "agent/systemd/polkit.py",
                " for vm in config.vms.values() if vm.live}",
                " for vm in config.vms.values() if not vm.live}",
            ),
        ),
        ("tests/host/test_least_privilege.py::test_a_push_may_be_started_where_a_vm_is_live",),
    ),
    Protection(
        "an approval is of one change",
        (
            Edit(
                "agent/reconcile/decision.py",
                "now.approved != wanted.digest):",
                "not now.approved):",
            ),
        ),
        ("tests/unit/agent/test_approval.py::test_an_approval_is_of_one_change",),
    ),
    Protection(
        "an approval is of the change that the operator names",
        (Edit("agent/rollout/holding.py", "not manifest.run.startswith(change)", "False"),),
        ("tests/unit/agent/test_approval.py::test_a_change_that_came_meanwhile_is_not_approved",),
    ),
    Protection(
        "the units around restarts may be started, for their VM",
        (
            Edit(
                "agent/systemd/polkit.py",
                "granted |= {vm.unit_of(each): _STARTS for each in vm.units.templates}",
                "granted |= {each: _STARTS for each in vm.units.templates}",
            ),
        ),
        ("tests/host/test_least_privilege.py::test_units_around_restarts_may_be_started",),
    ),
    Protection(
        "credferry's units, and those of microvm.nix, are not started around restarts",
        (Edit("agent/config/checks.py", 'name.startswith(("credferry", "microvm"))', "False"),),
        ("tests/unit/agent/test_around.py::test_what_is_no_unit_of_the_operator",),
    ),
    Protection(
        "the unit of a VM is not started around restarts",
        (
            Edit(
                "agent/config/loading.py",
                "if (name := vm.unit_of(each)) in units:",
                "if (name := each) == 0:",
            ),
        ),
        ("tests/unit/agent/test_around.py::test_the_unit_of_another_vm_is_none",),
    ),
    Protection(
        "a health check may be started where there is one",
        (
            Edit(
                "agent/systemd/polkit.py",
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
        (Edit("agent/store/sealed_files.py", "if not manifest.holds(entry, value):", "if False:"),),
        ("tests/unit/agent/store/test_sealed_files.py::test_a_single_file_of_somewhere_else_is_refused",),
    ),
    Protection(
        "a push goes to nobody but the VM",
        (Edit("launcher/pushing.py", "        asked.check(connection, asked.unit)\n", ""),),
        (
            "tests/unit/launcher/test_push.py::test_a_neighbour_that_listens_gets_nothing",
            "tests/host/test_push.py::test_a_neighbour_of_the_same_user_gets_nothing",
            "tests/host/test_live.py::test_a_neighbour_with_a_made_up_receipt",
        ),
    ),
    Protection(
        "a push goes to no process that calls its own cgroup like the VM's unit",
        (Edit("launcher/push/peer.py", "return parts[:1] == [unit]", "return unit in parts"),),
        ("tests/unit/launcher/test_push.py::test_only_the_units_own_cgroup_counts",),
    ),
    Protection(
        "only the generation's receipt proves a push",
        (Edit("launcher/pushing.py", "if done.receipt != push_receipt(manifest):", "if not done.receipt:"),),
        (
            "tests/unit/launcher/test_push.py::test_a_made_up_receipt_proves_nothing",
            "tests/host/test_push.py::test_a_forged_receipt_fails_the_unit",
            "tests/host/test_live.py::test_a_guest_that_answers_without_the_receipt",
        ),
    ),
    Protection(
        "a receipt is of one VM",
        (Edit("launcher/handoff.py", "credferry receipt {manifest.vm} {", "credferry receipt {"),),
        ("tests/unit/agent/test_live.py::test_a_receipt_is_of_one_generation_of_one_vm",),
    ),
    Protection(
        "a push has a deadline",
        (
            Edit(
                "launcher/push/protocol.py",
                "ready = poll.poll(left * 1000) if left > 0 else []",
                "ready = poll.poll()",
            ),
        ),
        ("tests/unit/launcher/test_push.py::test_a_guest_that_says_nothing_does_not_hold_the_push",),
    ),
    Protection(
        "a push follows no link in the place of its note",
        (Edit("launcher/push/vsock.py", "os.O_RDONLY | os.O_NOFOLLOW | ", "os.O_RDONLY | "),),
        ("tests/unit/launcher/test_push.py::test_a_note_that_is_no_file_is_not_read",),
    ),
    Protection(
        "what a guest says has a limit",
        (Edit("launcher/push/protocol.py", "if len(line) >= LINE_MAX:", "if False:"),),
        ("tests/unit/launcher/test_push.py::test_a_push_that_fails_says_why",),
    ),
    Protection(
        "a guest's manifest is sealed where the guest has a key",
        (
            Edit(
                "agent/reconcile/live.py",
                "    if guest is not None:\n        kind",
                "    if False:\n        kind",
            ),
        ),
        ("tests/unit/agent/test_live.py::test_it_is_sealed_where_the_guest_has_a_key",),
    ),
    Protection(
        "a push counts by root's proof alone",
        (
            Edit(
                "agent/rollout/push_jobs.py",
                "if self.observer.starts.is_proof(vm, manifest):",
                "if result == DONE:",
            ),
        ),
        (
            "tests/unit/agent/test_pushes.py::test_a_done_job_without_a_proof_proves_nothing",
            "tests/unit/agent/test_pushes.py::test_a_job_that_joins_an_older_push_proves_nothing",
        ),
    ),
    Protection(
        "a proof counts only if root's two copies are equal",
        (Edit("agent/store/evidence.py", "return after if before == after else None", "return after"),),
        ("tests/unit/agent/test_pushes.py::test_a_proof_counts_only_if_nothing_changed_during_the_push",),
    ),
    Protection(
        "a push counts only for the start of the VM to which it went",
        (
            Edit(
                "agent/rollout/push_jobs.py",
                "if not vm_unit.is_active or vm_unit.invocation_id != invocation:",
                "if not vm_unit.is_active:",
            ),
        ),
        ("tests/unit/agent/test_pushes.py::test_a_vm_that_starts_during_its_push_is_judged_by_its_start",),
    ),
    Protection(
        "what a guest holds is unknown while a push has no known end",
        (
            Edit(
                "agent/reconcile/decision.py",
                "if running == wanted.digest and not now.is_in_doubt:",
                "if running == wanted.digest:",
            ),
        ),
        ("tests/unit/agent/test_pushes.py::test_values_that_go_back_during_a_crash_still_reach_the_guest",),
    ),
    Protection(
        "evidence of starts is root's",
        (Edit("agent/store/evidence.py", "owners=_trusted(), ", ""),),
        (
            "tests/unit/agent/test_evidence.py::test_files_and_directories_of_others_count_as_none",
            "tests/unit/agent/test_evidence.py::test_proofs_of_others_count_as_none",
        ),
    ),
    Protection(
        "evidence alone says what a VM runs",
        (
            Edit(
                "agent/reconcile/observed.py",
                "known = (now.pushed, now.evidence, now.assumed)",
                "known = (now.pushed, now.hint, now.assumed)",
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
                "agent/reconcile/observed.py",
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
                "agent/reconcile/starts.py",
                "read_untrusted(report.path, limit=_STAMP_SIZE_MAX, below=runtime)",
                "report.path.read_bytes()",
            ),
        ),
        ("tests/host/test_forger.py::test_what_is_no_stamp_changes_nothing",),
    ),
    Protection(
        "nobody but root reads evidence",
        (Edit("contrib/systemd/credferry-vm.conf", "install -D -m 0600", "install -D -m 0644"),),
        ("tests/host/test_forger.py::test_evidence_is_out_of_reach",),
    ),
    Protection(
        "root gives a guest nothing but a plain key file",
        (
            Edit(
                "agent/sealing/keys.py",
                "if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:",
                "if False:",
            ),
        ),
        ("tests/unit/agent/store/test_guest_keys.py::test_what_the_agents_user_plants_reaches_no_guest",),
    ),
    Protection(
        "root puts a guest's key only where no other user can write",
        (
            Edit(
                "agent/store/guest_keys.py",
                "if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):",
                "if False:",
            ),
        ),
        ("tests/unit/agent/store/test_guest_keys.py::test_nothing_is_put_where_another_user_can_write",),
    ),
    Protection(
        "the agent refuses a powerful name that is not allowed",
        (
            Edit(
                "agent/config/checks.py",
                "if is_powerful_name(name) and name not in vm.allow_names:",
                "if False:",
            ),
        ),
        (
            "tests/unit/launcher/test_power.py::test_what_programs_of_the_system_read_is_refused_on_both_sides",
        ),
    ),
    Protection(
        "values stay out of the hypervisor's environment",
        (
            Edit(
                "launcher/channels.py",
                "    oem.check_body(len(body.reveal()), credentials, major)\n",
                '    os.environ["BODY"] = body.reveal().decode()\n',
            ),
        ),
        (
            "tests/unit/launcher/test_process.py::test_the_vm_is_created_over_the_api_and_nothing_secret_is_in_an_argument_vector",
        ),
    ),
    Protection(
        "the agent hides its memory",
        (Edit("agent/hardening.py", "Hardening(hide(), ", 'Hardening("", '),),
        ("tests/unit/agent/test_hardening.py::test_no_core_and_nobody_else",),
    ),
    Protection(
        "the agent may write no core",
        (Edit("agent/hardening.py", " _forbid_core_dumps(), _lock", ' "", _lock'),),
        ("tests/unit/agent/test_hardening.py::test_no_core_and_nobody_else",),
    ),
    Protection(
        "the hypervisor may write no core",
        (Edit("launcher/__main__.py", "    hardening.forbid_core_dumps()\n", ""),),
        (
            "tests/unit/launcher/test_hardening.py::test_hypervisor_and_child_leave_no_core",
            "tests/unit/launcher/test_hardening.py::test_the_limit_comes_before_the_values",
        ),
    ),
    Protection(
        "root's helpers take no file of another owner",
        (Edit("launcher/trust.py", "if status.st_uid != 0:", "if False:"),),
        ("tests/unit/launcher/test_trust.py::test_what_others_can_change_is_refused",),
    ),
    Protection(
        "root's helpers take no file that others can write",
        (Edit("launcher/trust.py", "if writable and not is_sticky and", "if False and"),),
        ("tests/unit/launcher/test_trust.py::test_what_others_can_change_is_refused",),
    ),
    Protection(
        "the doctor runs no program that others can change",
        (
            Edit(
                "agent/doctor/arguments.py",
                "    if found is not None:\n        raise",
                "    if False:\n        raise",
            ),
        ),
        (
            "tests/unit/agent/test_doctor_arguments.py::test_what_others_can_change_is_not_run",
            "tests/host/test_doctor.py::test_the_judgement_runs_nothing_that_a_vms_user_could_have_written",
        ),
    ),
    Protection(
        "a guest key is the one that the look saw",
        (Edit("agent/reconcile/sealer.py", "if guest_id(guest) != wanted.guest:", "if False:"),),
        (
            "tests/unit/agent/test_sealer.py::test_a_guest_key_that_changes_before_the_sealing_lets_nothing_through",
        ),
    ),
    Protection(
        "the launcher passes nothing as sealed that is not",
        (
            Edit(
                "launcher/oem.py",
                "if credential.kind is Kind.SEALED and not _is_sealed(",
                "if False and not _is_sealed(",
            ),
        ),
        ("tests/unit/launcher/test_oem.py::test_what_is_over_a_limit_is_refused",),
    ),
    Protection(
        "the store is sealed with the host's key",
        (
            Edit("agent/sealing/credential.py", "AESGCM(key.aes_key).encrypt", "AESGCM(bytes(32)).encrypt"),
            Edit("agent/sealing/credential.py", "AESGCM(key.aes_key).decrypt", "AESGCM(bytes(32)).decrypt"),
        ),
        ("tests/unit/agent/store/test_sealed_files.py::test_another_keys_generation_counts_as_none",),
    ),
    Protection(
        "sealed values are authenticated",
        (
            Edit(
                "agent/sealing/credential.py",
                "AESGCM(key.aes_key).decrypt(iv, data[_AAD_SIZE:], data[:_AAD_SIZE])",
                "AESGCM(key.aes_key).encrypt(iv, data[_AAD_SIZE:-_TAG_SIZE], None)[:-_TAG_SIZE]",
            ),
        ),
        ("tests/unit/agent/test_sealing.py::test_any_flipped_byte_is_refused",),
    ),
    Protection(
        "a generation is its own VM's",
        (Edit("agent/store/sealed_files.py", "is_own = manifest.vm == vm and", "is_own ="),),
        ("tests/unit/agent/store/test_sealed_files.py::test_another_vms_generation_counts_as_none",),
    ),
    Protection(
        "a sealed value keeps its name",
        (
            Edit(
                "agent/sealing/credential.py",
                "if embedded and name is not None and embedded != name:",
                "if False:",
            ),
        ),
        ("tests/unit/agent/test_sealing.py::test_refuses_what_must_be_refused",),
    ),
    Protection(
        "a secret does not show itself",
        (Edit("launcher/handoff.py", 'return "Secret(…)"', 'return f"Secret({self._value!r})"'),),
        ("tests/unit/launcher/test_oem.py::test_nothing_shows_a_credential",),
    ),
    Protection(
        "what is shown of a credential is redacted",
        (Edit("launcher/credentials.py", 'self.kind, Secret(b""))', "self.kind, self.value)"),),
        (
            "tests/unit/launcher/test_main.py::test_explain_redacts_every_value",
            "tests/unit/launcher/test_oem.py::test_nothing_shows_a_credential",
        ),
    ),
    Protection(
        "an error of the certificate library's own kind is a bad certificate",
        (
            Edit(
                "agent/reconcile/pairs.py",
                "    except Exception:  # noqa: BLE001 (cryptography",
                "    except ValueError:  # noqa: BLE001 (cryptography",
            ),
        ),
        ("tests/unit/agent/test_pairs.py::test_no_error_of_the_library_gets_through",),
    ),
    Protection(
        "an error of the certificate library's own kind is no end of a certificate",
        (Edit("agent/reconcile/expiry.py", "except Exception:", "except ValueError:"),),
        ("tests/unit/agent/test_pairs.py::test_no_error_of_the_library_gets_through",),
    ),
    Protection(
        "keys whose loading takes hours are not loaded",
        (Edit("agent/reconcile/pairs.py", "if any(each in der for each in _SLOW):", "if False:"),),
        ("tests/unit/agent/test_pairs.py::test_a_key_that_takes_hours_is_not_loaded",),
    ),
    Protection(
        "blocks of PEM are found in linear time",
        (Edit("agent/reconcile/pairs.py", "((?>[^-]+|-(?!----))*+)", "((?s:.*?))"),),
        ("tests/unit/agent/test_pairs.py::test_blocks_without_an_end_take_no_time",),
    ),
    Protection(
        "no error of a file's parser ends the agent",
        (Edit("agent/source/fields.py", "except Exception:", "except (ValueError, RecursionError):"),),
        ("tests/unit/agent/test_fields.py::test_a_reader_of_yaml_without_libyaml",),
    ),
    Protection(
        "a certificate and a key that do not belong together are not sealed",
        (
            Edit(
                "agent/reconcile/pairs.py",
                "return Together() if of_certificate == of_key else",
                "return Together() if of_key else",
            ),
        ),
        (
            "tests/unit/agent/test_pairs.py::test_one_restart_onto_the_whole_pair",
            "tests/unit/agent/test_pairs.py::test_the_first_sealing_waits_for_the_pair",
        ),
    ),
    Protection(
        "a source that cannot be read concerns its own VMs",
        (
            Edit(
                "agent/source/published.py",
                "    except SourceError as error:\n        return error\n",
                "    except ZeroDivisionError:\n        raise\n",
            ),
        ),
        ("tests/unit/agent/test_sources.py::test_a_lost_source_concerns_its_own_vms",),
    ),
    Protection(
        "a source that settles concerns its own VMs",
        (
            Edit(
                "agent/source/settling.py",
                "for source in vm.secrets if source in unsettled), default=0.0)",
                "for source in unsettled), default=0.0)",
            ),
        ),
        ("tests/unit/agent/test_sources.py::test_a_source_that_settles_holds_up_its_own_vms_alone",),
    ),
    Protection(
        "a secret is known by its source as well as by its name",
        (
            Edit(
                "agent/config/secrets.py",
                'of = f"source/{self.source}" if self.source else "secret"',
                'of = "secret"',
            ),
        ),
        ("tests/unit/agent/test_sources.py::test_one_name_in_two_sources_is_two_secrets",),
    ),
    Protection(
        "a parsed file of fields does not show itself",
        (
            Edit(
                "agent/source/fields.py",
                'return f"ParsedFile({self.form.value}, …)"',
                'return f"ParsedFile({self.content})"',
            ),
        ),
        ("tests/unit/agent/test_fields.py::test_no_value_shows",),
    ),
    Protection(
        "a change that needs an approval is not sealed during the VM's restart",
        (Edit("agent/reconcile/sealer.py", "if vm.policy is not Policy.APPROVE:", "if True:"),),
        ("tests/unit/agent/test_approval.py::test_what_is_published_during_the_restart_is_not_approved",),
    ),
    Protection(
        "no generation becomes current again of which a value does not open",
        (
            Edit(
                "agent/store/generations.py",
                "if manifest is not None and self.opens(vm, number):",
                "if manifest is not None:",
            ),
        ),
        (
            "tests/unit/agent/store/test_generations.py::test_no_way_back_to_values_that_do_not_open",
            "tests/unit/agent/test_service.py::test_a_vm_is_not_put_back_onto_what_does_not_open",
        ),
    ),
    Protection(
        "nothing is removed that a restart in progress may go back to",
        (Edit("agent/reconcile/pruning.py", "if is_at_rest:", "if True:"),),
        (
            "tests/unit/agent/test_pruning.py::test_what_a_rollback_needs_is_read_again_when_others_are_removed",
        ),
    ),
    Protection(
        "nothing but what is approved is restarted onto",
        (
            Edit(
                "agent/reconcile/decision.py",
                "(seal is not None or now.approved != wanted.digest)",
                "now.approved != wanted.digest",
            ),
        ),
        (
            "tests/unit/agent/test_approval.py::test_no_restart_onto_what_is_sealed_if_something_else_is_approved",
        ),
    ),
    Protection(
        "a link of another user is not followed to a source",
        (Edit("agent/source/way_in.py", "if owner not in trusted:", "if False:"),),
        ("tests/unit/agent/test_source.py::test_a_link_of_another_user_leads_nowhere",),
    ),
    Protection(
        "directories that a link has left are closed",
        (
            Edit(
                "agent/source/reading.py",
                "os.close(directories.pop())",
                "directories.insert(1, directories.pop())",
            ),
        ),
        ("tests/unit/agent/test_source.py::test_a_link_opens_few_files_at_a_time",),
    ),
    Protection(
        "a link leads through few directories",
        (Edit("agent/source/reading.py", "if len(directories) > _DEPTH_MAX:", "if False:"),),
        ("tests/unit/agent/test_source.py::test_a_link_opens_few_files_at_a_time",),
    ),
    Protection(
        "units after restarts run without a source",
        (
            Edit(
                "agent/daemon/cycle.py",
                "session.pacer.hold_back(session.observer.look_at(published, vms, manager))",
                "session.observer.look_at(published, vms, manager)",
            ),
        ),
        (
            "tests/unit/agent/test_around.py::test_a_producer_that_withdraws_everything_keeps_no_vm_out_of_service",
        ),
    ),
    Protection(
        "an answer that may hold a value is not shown",
        (Edit("launcher/quoting.py", " or _may_hold(answer, values):", ":"),),
        (
            "tests/unit/launcher/test_quoting.py::test_an_answer_with_a_value_is_not_shown",
            "tests/unit/launcher/test_quoting.py::test_an_answer_with_part_of_a_value_is_not_shown",
        ),
    ),
    Protection(
        "an answer in another encoding is not shown",
        (
            Edit("launcher/quoting.py", 'if "\\0" in text or _may', "if _may"),
            Edit("launcher/quoting.py", "json.loads(text)", "json.loads(answer)"),
        ),
        ("tests/unit/launcher/test_quoting.py::test_an_answer_in_another_encoding_is_not_shown",),
    ),
    Protection(
        "root copies a guest's key from the store alone",
        (Edit("agent/cli/guest_key.py", "below=Path(loaded.state_directory))", "below=path.parent)"),),
        ("tests/unit/agent/store/test_guest_keys.py::test_a_key_made_by_hand_is_not_copied_from_elsewhere",),
    ),
    Protection(
        "no name that a producer chose is advised as a setting",
        (Edit("agent/source/sandbox.py", "if not _PLAIN.fullmatch(self.path):", "if False:"),),
        ("tests/unit/agent/test_sandbox.py::test_no_name_that_a_producer_chose_is_in_a_setting",),
    ),
    Protection(
        "no link leads out of the source",
        (
            Edit(
                "agent/source/reading.py",
                "_open_following(top, name) if follow_links else _open_beneath(top, name)",
                "_open_following(top, name)",
            ),
        ),
        ("tests/unit/agent/test_source.py::test_one_bad_name_is_a_problem",),
    ),
    Protection(
        "the source's devices are not read",
        (Edit("agent/source/reading.py", "if not stat.S_ISREG(before.st_mode):", "if False:"),),
        ("tests/unit/agent/test_source.py::test_devices_are_refused_where_links_are_followed",),
    ),
    Protection(
        "a source that moved is read again",
        (
            Edit(
                "agent/source/snapshot.py",
                "!= (generation.device, generation.inode) or trail.has_moved():",
                "== (0, 0):",
            ),
        ),
        ("tests/unit/agent/test_source.py::test_never_mixes_generations",),
    ),
    Protection(
        "fingerprints have the host's key",
        (
            Edit(
                "agent/reconcile/desired.py",
                'self.key.mac("fingerprint").of(content)',
                '__import__("hmac").digest(b"", content, "sha256")',
            ),
        ),
        (
            "tests/unit/agent/test_desired.py::test_no_guess_is_confirmed",
            "tests/unit/agent/test_desired.py::test_another_key_tells_another_story",
            "tests/host/test_control.py::test_no_guess_is_confirmed_by_what_others_read",
        ),
    ),
    *AT_REST,
    *FLEET,
    *ON_HOSTS,
)
