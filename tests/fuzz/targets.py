# SPDX-License-Identifier: MIT
"""All targets, by name. Under the fuzzer this module is to be imported so that agent and launcher are
instrumented; without it, targets run all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fuzz import (
    agent_targets,
    fleet_targets,
    launcher_targets,
    oracle_targets,
    secret_targets,
    stream_targets,
)

if TYPE_CHECKING:
    from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for module in (
        agent_targets,
        fleet_targets,
        launcher_targets,
        oracle_targets,
        secret_targets,
        stream_targets,
    )
    for target in module.TARGETS
}
