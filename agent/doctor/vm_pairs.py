# SPDX-License-Identifier: MIT
"""Whether a VM's certificates and private keys belong together. No finding has a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credferry.agent.doctor.finding import hint, ok, problem
from credferry.agent.reconcile.desired import Desired, Unpaired
from credferry.agent.reconcile.pairs import Uncheckable, belong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credferry.agent.config.model import VmConfig
    from credferry.agent.doctor.chain import Chain
    from credferry.agent.doctor.finding import Finding


def check(chain: Chain, vm: VmConfig) -> Iterator[Finding]:
    """Each pair of a VM, as it is published. Raises `UnseenError`."""
    if not vm.pairs:
        return
    match chain.seen(vm)[0].desired:
        case Unpaired(reasons):
            for reason in reasons:
                yield problem(
                    "vm.pairs",
                    f"waits {reason}",
                    vm=vm.name,
                    why="nothing is sealed for the VM until the pair is complete",
                    remedy="publish the other half, or correct pairs in the configuration",
                )
        case Desired(values=values):
            for pair in vm.pairs:
                found = belong(pair, values.get(pair[0]), values.get(pair[1]))
                if isinstance(found, Uncheckable):
                    yield hint(
                        "vm.pairs",
                        f"cannot check a pair: {found.reason}",
                        vm=vm.name,
                        why="a certificate and a key of different rotations would be sealed together",
                        remedy="publish a key without a password, or leave the pair out of pairs",
                    )
                else:
                    yield ok("vm.pairs", f"{pair[0]} is of {pair[1]}", vm.name)
