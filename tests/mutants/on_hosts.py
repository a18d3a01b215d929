# SPDX-License-Identifier: MIT
"""Protections whose loss only a booted host or a booted guest shows."""

from __future__ import annotations

from typing import Final

from tests.mutants.row import Edit, Protection

_HOST: Final = "tests/host"
_AUDIT: Final = f"{_HOST}/test_audit.py"
_BAD_INPUT: Final = f"{_HOST}/test_bad_input.py"
_CONTROL: Final = f"{_HOST}/test_control.py"
_HOSTILE: Final = f"{_HOST}/test_hostile_files.py"
_LEAST: Final = f"{_HOST}/test_least_privilege.py"
_HELPERS: Final = f"{_HOST}/test_root_helpers.py"
_POLICY: Final = "contrib/dbus/org.credferry.Agent1.conf"
_UNIT: Final = "contrib/systemd/credferry.service"
_SEAL_UNIT: Final = "contrib/systemd/credferry-seal.service"
_DROP_IN: Final = "contrib/systemd/credferry-vm.conf"

ON_HOSTS: Final = (
    Protection(
        "the audit believes a launcher by the VM's unit",
        (
            Edit(
                "agent/audit/records.py",
                'return text(entry.get("_SYSTEMD_UNIT", "")) == unit',
                "return bool(unit)",
            ),
        ),
        (
            f"{_AUDIT}::test_a_launcher_is_believed_by_its_unit",
            f"{_AUDIT}::test_only_who_may_say_so_is_believed",
        ),
    ),
    Protection(
        "the audit believes root and the agent's unit alone",
        (Edit("agent/audit/records.py", 'return entry.get("_UID") == 0 or', "return True or"),),
        (
            f"{_AUDIT}::test_only_who_may_say_so_is_believed",
            f"{_LEAST}::test_the_unit_is_believed_and_not_its_user",
        ),
    ),
    Protection(
        "a key file has the mode that systemd takes",
        (Edit("agent/sealing/keys.py", "if stat.S_IMODE(status.st_mode) != KEY_MODE:", "if False:"),),
        (f"{_BAD_INPUT}::test_a_key_that_others_can_read",),
    ),
    Protection(
        "a key file is this machine's",
        (
            Edit(
                "agent/sealing/keys.py",
                "if machine_id is not None and content[:HEADER_SIZE] != hashed_machine_id(machine_id):",
                "if False:",
            ),
        ),
        (f"{_BAD_INPUT}::test_the_key_of_another_machine",),
    ),
    Protection(
        "a key file is root's",
        (
            Edit(
                "agent/sealing/keys.py",
                "if owners is not None and status.st_uid not in owners:",
                "if False:",
            ),
        ),
        (f"{_HOST}/test_readiness.py::test_a_key_of_another_user",),
    ),
    Protection(
        "no VM that is up is restarted where a start could make no files",
        (
            Edit(
                "agent/reconcile/ground.py",
                "if found.f_files and found.f_favail < _FILES_LEAST:",
                "if False:",
            ),
        ),
        (f"{_HOST}/test_readiness.py::test_a_runtime_directory_that_a_vms_user_has_filled",),
    ),
    Protection(
        "a VM's working directory is no link",
        (
            Edit(
                "contrib/systemd/microvm@.service",
                "AssertPathIsSymbolicLink=!",
                "#AssertPathIsSymbolicLink=!",
            ),
        ),
        (f"{_HELPERS}::test_a_link_in_the_place_of_the_working_directory_is_refused",),
    ),
    Protection(
        "the bus lets the group call nothing but Plan",
        (Edit(_POLICY, ' send_member="Plan"', ""),),
        (f"{_CONTROL}::test_a_group_reads_and_root_rules",),
    ),
    Protection(
        "the bus lets nobody read but the group",
        (Edit(_POLICY, '<policy group="credferry">', '<policy context="default">'),),
        (
            f"{_CONTROL}::test_a_group_reads_and_root_rules",
            f"{_CONTROL}::test_signals_tell_a_rotation",
            f"{_CONTROL}::test_status_for_members_of_the_group",
        ),
    ),
    Protection(
        "the bus gives signals to nobody but the group",
        (
            Edit(
                _POLICY,
                '    <deny receive_sender="org.credferry.Agent1" receive_type="signal"/>\n',
                "",
            ),
        ),
        (f"{_CONTROL}::test_signals_tell_a_rotation",),
    ),
    Protection(
        "the agent works without its name",
        (
            Edit(
                "agent/control/server.py",
                'self._tell_lack(f"{NAME} belongs to another process: check whether a second agent runs")',
                '__import__("os")._exit(1)',
            ),
        ),
        (f"{_CONTROL}::test_another_owner_of_the_name",),
    ),
    Protection(
        "objects on the bus have no fingerprint",
        (
            Edit(
                "agent/reconcile/status.py",
                'return f"started on generation {evidence.generation}" if evidence',
                'return f"started on generation {evidence.generation} ({evidence.digest})" if evidence',
            ),
        ),
        (f"{_CONTROL}::test_status_for_members_of_the_group",),
    ),
    Protection(
        "the doctor waits for no FIFO",
        (Edit("agent/doctor/probe.py", "os.O_RDONLY | os.O_NONBLOCK |", "os.O_RDONLY |"),),
        (f"{_HOSTILE}::test_the_doctor_opens_nothing_for_a_vm_s_user",),
    ),
    Protection(
        "the doctor reads nothing that a VM's user chose and may not read",
        (
            Edit(
                "agent/doctor/probe.py",
                "if not status.st_mode & stat.S_IROTH and changeable(path) is not None:",
                "if False:",
            ),
        ),
        (f"{_HOSTILE}::test_the_doctor_opens_nothing_for_a_vm_s_user",),
    ),
    Protection(
        "the doctor prints no command about a file that a VM's user chose",
        (Edit("agent/doctor/launcher.py", "] if changed is None else (),", "],"),),
        (f"{_HOSTILE}::test_the_doctor_opens_nothing_for_a_vm_s_user",),
    ),
    Protection(
        "the doctor asks no program for its version that others can change",
        (
            Edit(
                "agent/doctor/hypervisor.py",
                "if each.is_absolute() and (changed := probe.changeable(each)) is not None:",
                "if False:",
            ),
        ),
        (f"{_HOSTILE}::test_the_doctor_runs_no_program_that_is_not_root_s",),
    ),
    Protection(
        "files of the store are opened as another user's",
        (
            Edit(
                "agent/store/sealed_files.py",
                "return read_untrusted(path, limit=SEALED_FILE_MAX, below=self.state)",
                "return path.read_bytes()",
            ),
            Edit(
                "agent/store/record_access.py",
                "return read_untrusted(path, limit=RECORD_MAX, below=self.state)",
                "return path.read_bytes()",
            ),
        ),
        (
            "tests/unit/agent/store/test_planted_files.py::test_what_the_agent_s_user_can_plant_is_taken_for_nothing",
            f"{_HOSTILE}::test_the_store_keeps_no_verb_waiting",
        ),
    ),
    Protection(
        "neither way leaves a core of the agent",
        (
            Edit("agent/hardening.py", "Hardening(hide(), ", 'Hardening("", '),
            Edit("agent/hardening.py", " _forbid_core_dumps(), _lock", ' "", _lock'),
        ),
        (f"{_LEAST}::test_a_crash_leaves_no_core",),
    ),
    Protection(
        "nobody reads the agent's memory",
        (Edit("agent/hardening.py", "Hardening(hide(), ", 'Hardening("", '),),
        (f"{_LEAST}::test_memory_is_out_of_reach",),
    ),
    Protection(
        "PrivateMounts= hides other VMs' credentials",
        (Edit(_DROP_IN, "PrivateMounts=yes\n", ""),),
        (f"{_LEAST}::test_a_vmm_sees_no_neighbour_s_credentials",),
    ),
    Protection(
        "ProtectProc= hides other users' processes",
        (Edit(_DROP_IN, "ProtectProc=invisible\n", ""),),
        (f"{_LEAST}::test_a_vmm_sees_no_neighbour_s_credentials",),
    ),
    Protection(
        "the agent's unit has no network",
        (Edit(_UNIT, "PrivateNetwork=yes\n", ""),),
        (f"{_LEAST}::test_exposure",),
    ),
    Protection(
        "the agent's unit has no network until the drop-in for [fleet] is there",
        (
            Edit(_UNIT, "PrivateNetwork=yes\n", ""),
            Edit(_UNIT, "IPAddressDeny=any\n", ""),
            Edit(_UNIT, "RestrictAddressFamilies=AF_UNIX\n", ""),
        ),
        (f"{_LEAST}::test_a_network_for_the_fleet_alone",),
    ),
    Protection(
        "the agent's unit has no devices",
        (Edit(_UNIT, "PrivateDevices=yes\n", ""),),
        (f"{_LEAST}::test_exposure",),
    ),
    Protection(
        "the agent's unit gets no new privileges",
        (Edit(_UNIT, "NoNewPrivileges=yes\n", ""),),
        (f"{_LEAST}::test_exposure",),
    ),
    Protection(
        "the agent's unit writes no core",
        (Edit(_UNIT, "LimitCORE=0\n", ""),),
        (f"{_LEAST}::test_exposure",),
    ),
    Protection(
        "the first sealing has no network",
        (Edit(_SEAL_UNIT, "PrivateNetwork=yes\n", ""),),
        (f"{_LEAST}::test_exposure",),
    ),
    Protection(
        "root makes a guest's key as the owner of the store",
        (
            Edit(
                "agent/cli/owner.py",
                "    if user != 0 or status.st_uid == 0:",
                "    if True:",
            ),
        ),
        (f"{_LEAST}::test_root_is_not_led_astray",),
    ),
    Protection(
        "root seals into no directory of another user",
        (Edit("agent/store/opening.py", "if os.geteuid() == 0 and owner != 0:", "if False:"),),
        (f"{_LEAST}::test_root_is_not_led_astray",),
    ),
    Protection(
        "nobody reads the memory of the launcher's child",
        (Edit("launcher/start.py", "        hardening.hide()\n", ""),),
        (f"{_LEAST}::test_the_launcher_s_child_is_out_of_reach",),
    ),
    Protection(
        "nobody else lists the store",
        (
            Edit(_UNIT, "StateDirectoryMode=0700", "StateDirectoryMode=0755"),
            Edit(_SEAL_UNIT, "StateDirectoryMode=0700", "StateDirectoryMode=0755"),
        ),
        (f"{_LEAST}::test_the_store_is_root_s_and_the_agent_s",),
    ),
    Protection(
        "a VM's user owns its working directory alone",
        (
            Edit(
                "contrib/systemd/microvm@.service",
                "StateDirectory=microvms/%i/work",
                "StateDirectory=microvms/%i",
            ),
            Edit(
                "contrib/systemd/microvm@.service",
                "WorkingDirectory=/var/lib/microvms/%i/work",
                "WorkingDirectory=/var/lib/microvms/%i",
            ),
        ),
        (f"{_HELPERS}::test_the_users_own_directory_decides_nothing",),
    ),
    Protection(
        "root's helpers take nothing from a directory of the VM's user",
        (Edit("launcher/trust.py", "if status.st_uid != 0:", "if False:"),),
        (f"{_HELPERS}::test_a_directory_that_the_user_can_change_is_refused",),
    ),
    Protection(
        "root makes no socket in a directory of the VM's user",
        (Edit("launcher/spec/host.py", "        trust.check_directory(directory)\n", "        pass\n"),),
        (f"{_HELPERS}::test_a_socket_elsewhere_is_refused",),
    ),
    Protection(
        "nobody else writes where the sockets of shares are",
        (
            Edit(
                "contrib/systemd/microvm-virtiofsd@.service",
                "RuntimeDirectoryMode=0755",
                "RuntimeDirectoryMode=0777",
            ),
            Edit("launcher/spec/host.py", "        trust.check_directory(directory)\n", "        pass\n"),
        ),
        (f"{_HELPERS}::test_shares_are_served_from_a_directory_of_roots",),
    ),
    Protection(
        "a forger's reports decide neither what runs nor what to go back to",
        (
            Edit(
                "agent/reconcile/observed.py",
                "known = (now.pushed, now.evidence, now.assumed)",
                "known = (now.pushed, now.hint, now.assumed)",
            ),
            Edit(
                "agent/reconcile/observed.py",
                "for each in (self.pushed, self.evidence, self.assumed) if each]",
                "for each in (self.pushed, self.hint, self.assumed) if each]",
            ),
        ),
        (
            f"{_HOST}/test_forger.py::test_a_rollback_goes_by_evidence",
            f"{_HOST}/test_forger.py::test_rotations_go_on_under_a_forger",
        ),
    ),
    Protection(
        "a VM is not restarted into the absence of a secret",
        (
            Edit(
                "agent/reconcile/desired.py",
                "case Problem.ABSENT | Problem.EMPTY | Problem.NO_FIELD if not credential.required:",
                "case Problem.ABSENT | Problem.EMPTY | Problem.NO_FIELD:",
            ),
        ),
        (f"{_HOST}/test_rotation.py::test_a_missing_secret_keeps_the_vm_running",),
    ),
    Protection(
        "the text of an error that nobody expected is not shown",
        (
            Edit(
                "agent/errors.py",
                'return f"{type(error).__name__} at {frame.name}, line {frame.lineno}"',
                'return f"{type(error).__name__} at {frame.name}: {error}"',
            ),
        ),
        (f"{_HOST}/test_canary.py::test_no_path_leaks",),
    ),
    Protection(
        "a guest's reboot ends its hypervisor",
        (
            Edit(
                "launcher/supervise.py",
                "has_rebooted = _REBOOTING in events",
                "has_rebooted = False",
            ),
        ),
        ("tests/guest/test_main_job.py::test_a_guest_that_reboots_gets_the_newest_values",),
    ),
    Protection(
        "values are sealed for the guest",
        (
            Edit(
                "agent/reconcile/sealer.py",
                "return Secret(one_line(seal(value.reveal(), name=entry.name, key=guest)))",
                "return value",
            ),
            Edit(
                "launcher/oem.py",
                "if credential.kind is Kind.SEALED and not _is_sealed(",
                "if False and not _is_sealed(",
            ),
        ),
        ("tests/guest/test_main_job.py::test_guests_get_what_is_published",),
    ),
)
