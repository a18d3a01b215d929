# SPDX-License-Identifier: MIT
"""Chooses how a running VM gets new values: by a push to its guest, or by a restart; pure.

A VM is live on this boot if its configuration says ``live``, and root's evidence shows that its start gave
the guest a manifest. Another guest takes no push.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credferry.agent.store.records import Outcome, Way
from credferry.launcher.handoff import PUSH_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credferry.agent.reconcile.observed import Observed
    from credferry.launcher.handoff import Kind, ManifestEntry


@dataclass(frozen=True, slots=True)
class Choice:
    """A way, and why it is a restart though the VM is configured as live; else empty."""

    way: Way
    why: str = ""


def choose(now: Observed, digest: str, entries: Iterable[ManifestEntry]) -> Choice:
    """The way on which a running VM gets the generation of a digest, with these credentials."""
    vm, evidence, attempt = now.vm, now.evidence, now.attempt
    if not vm.live or now.unit is None or not now.unit.is_active:
        return Choice(Way.RESTART)
    if evidence is None:
        return Choice(Way.RESTART, "there is no evidence of its start")
    if not evidence.is_live:
        return Choice(Way.RESTART, "its guest was started without a manifest, and takes no push yet")
    if (
        attempt is not None
        and attempt.outcome is Outcome.UNPUSHED
        and attempt.digest == digest
        and attempt.before == now.unit.invocation_id
    ):
        return Choice(Way.RESTART, attempt.reason)
    entries = tuple(entries)
    if vm.guest_machine_id is not None and _is_new_key_alone(now, digest, entries):
        return Choice(Way.RESTART, "its guest gets its new key only when it starts")
    if changed := _read_at_boot(now, digest, entries):
        return Choice(Way.RESTART, f"its guest reads {', '.join(changed)} only when it boots")
    return Choice(Way.PUSH)


def _is_new_key_alone(now: Observed, digest: str, entries: Iterable[ManifestEntry]) -> bool:
    """Whether the guest's key alone has changed: digests include its id, and fingerprints do not."""
    if now.ran is None or now.ran.digest == digest:
        return False
    return _fingerprints(now.ran.credentials) == _fingerprints(entries)


def _fingerprints(entries: Iterable[ManifestEntry]) -> dict[str, tuple[Kind, str]]:
    """Kind and fingerprint of each credential, without the guest's manifest."""
    return {each.name: (each.kind, each.fingerprint) for each in entries if each.name != PUSH_MANIFEST}


def _read_at_boot(now: Observed, digest: str, entries: Iterable[ManifestEntry]) -> list[str]:
    """The credentials with ``live = false`` that have changed, or may have."""
    names = sorted(name for name, each in now.vm.credentials.items() if not each.live)
    if not names or (now.runs is not None and now.runs.digest == digest):
        return []
    if now.ran is None:
        return names
    ran, wanted = _fingerprints(now.ran.credentials), _fingerprints(entries)
    return [name for name in names if ran.get(name) != wanted.get(name)]
