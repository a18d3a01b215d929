# SPDX-License-Identifier: MIT
"""Seals what is published, once, and restarts nothing: the work of ``credferry-seal.service``."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from credferry.agent.daemon.reporter import Reporter
from credferry.agent.errors import HiddenSourceError, SealError, SourceError
from credferry.agent.reconcile.decision import State
from credferry.agent.rollout.session import Session
from credferry.agent.source.settling import Settling, seconds_left

if TYPE_CHECKING:
    from collections.abc import Collection

    from credferry.agent.config.model import Config, VmConfig
    from credferry.agent.reconcile.observer import Look, Observer

_LOOK_AGAIN_SECONDS = 0.2


def seal_once(
    config: Config, wait: float = 0.0, vms: Collection[VmConfig] | None = None
) -> list[tuple[VmConfig, State, str]]:
    """Seal what is published for these VMs, by default all. Returns each VM's state, and the reason for it.

    Does not ask systemd. Waits until the source is settled, and at most ``wait`` seconds until it is
    complete. Raises `KeyFileError`, `StoreFormError`, `StoreError` and `SourceError`.
    """
    session = Session.for_sealing(config)
    session.take_over(None)
    vms = config.vms.values() if vms is None else vms
    with suppress(SealError):  # then what is to be sealed is refused, with the reason
        session.resealing.keep(config.vms)
    session.sealer.make_guest_keys(vms)
    look = settled_look(config, session.observer, time.monotonic() + wait, vms)
    sealed = session.sealer.seal_due(look)
    session.sealer.prune(look)
    Reporter(session.audit).report(look.decisions)
    found = []
    for decision in look.decisions:
        if decision.seal is not None and decision.vm.name not in sealed:
            found.append((decision.vm, State.REFUSED, "its values could not be sealed"))
        else:
            found.append((decision.vm, decision.state, "; ".join(decision.reasons)))
    return found


def settled_look(config: Config, observer: Observer, deadline: float, vms: Collection[VmConfig]) -> Look:
    """A look at VMs with sources that are settled and, until the deadline, complete.

    Raises `SourceError` if no source can be read.

    Does not wait for a source that the unit hides: it cannot come.
    """
    settling = Settling(config)
    while True:
        now = time.monotonic()
        try:
            look = observer.look(vms, None)
        except SourceError as error:
            # A deadline that is not a number means no wait.
            if isinstance(error, HiddenSourceError) or not now < deadline:
                raise
            time.sleep(_LOOK_AGAIN_SECONDS)
            continue
        unsettled = settling.left(look.published, now)
        left = max((seconds_left(each.vm, unsettled) for each in look.decisions if each.seal), default=0.0)
        hidden = {
            name for name, each in look.published.errors.items() if isinstance(each, HiddenSourceError)
        }
        if now < deadline and any(
            each.state in {State.REFUSED, State.WAITING} and not each.vm.secrets.keys() & hidden
            for each in look.decisions
        ):
            time.sleep(_LOOK_AGAIN_SECONDS)
        elif left:
            time.sleep(left)
        else:
            return look
