# SPDX-License-Identifier: MIT
"""What the doctor says of environment files that root's commands in a VM's unit get as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.doctor import probe, vm_environment
from credferry.agent.doctor.chain import Chain
from credferry.agent.doctor.finding import Severity

TEXT = b'[vms.job]\nunit = "job.service"\nchannel = "directory"\n[vms.job.credentials]\nK = { text = "k" }\n'


@pytest.mark.parametrize(
    ("unit", "severities"),
    [
        ({"LoadState": "not-found"}, []),
        ({"LoadState": "loaded"}, []),
        ({"LoadState": "loaded", "EnvironmentFiles": [("/etc/job.env", True)]}, [Severity.OK]),
        (
            {"LoadState": "loaded", "EnvironmentFiles": [("/srv/job/env", True), ("/etc/job.env", False)]},
            [Severity.PROBLEM],
        ),
        ({"LoadState": "loaded", "EnvironmentFiles": [("/srv/job/*.env", True)]}, [Severity.PROBLEM]),
    ],
)
def test_environment_files(
    monkeypatch: pytest.MonkeyPatch, unit: dict[str, Any], severities: list[Severity]
) -> None:
    """One that another user can change, or make, is a problem with the user's name."""

    def changeable(path: Path) -> tuple[Path, str] | None:
        return (Path("/srv/job"), "job") if path.is_relative_to("/srv/job") else None

    monkeypatch.setattr(probe, "unit", lambda _name: unit)
    monkeypatch.setattr(probe, "changeable", changeable)
    file = Path("/etc/credferry/config.toml")
    found = list(vm_environment.check(Chain(file, ()), parse(TEXT, file).vm("job")))
    assert [each.severity for each in found] == severities
    assert all(each.check == "vm.environment" and each.vm == "job" for each in found)
    if Severity.PROBLEM in severities:
        assert found[0].what.startswith(
            "job can change /srv/job, and job.service reads EnvironmentFile=/srv/job/"
        )
