# SPDX-License-Identifier: MIT
"""Protections of values that a TPM seals."""

from __future__ import annotations

from typing import Final

from tests.mutants.row import Edit, Protection

AT_REST: Final = (
    Protection(
        "systemd is asked for the TPM",
        (
            Edit(
                "agent/sealing/systemd_creds.py",
                """found = [f"--with-key={self.with_key}{'-with-public-key' if has_key else ''}"]""",
                'found = ["--with-key=host"]',
            ),
        ),
        ("tests/unit/agent/test_systemd_creds.py::test_a_tpm_that_no_longer_opens",),
    ),
    Protection(
        "nothing is sealed with less than was asked for",
        (
            Edit(
                "agent/store/at_rest.py",
                "if kind is not None and not kind.tpm and (options.with_key != AUTO or kind is not HOST):",
                "if False:",
            ),
        ),
        ("tests/unit/agent/test_at_rest.py::test_a_systemd_that_does_not_seal_as_it_is_asked_to",),
    ),
    Protection(
        "the agent's sandbox has the TPM and no other device",
        (Edit("contrib/systemd/credferry-tpm.conf", "DeviceAllow=char-tpm rw", "DeviceAllow=char-* rw"),),
        ("tests/host/test_least_privilege.py::test_exposure_with_a_tpm",),
    ),
)
