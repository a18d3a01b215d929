# SPDX-License-Identifier: MIT
"""Conditions that last: told once when they begin, counted while they last, summed up when they are over."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Condition:
    text: str
    began: float
    times: int = 1


@dataclass(slots=True)
class Conditions:
    """What is the matter at present, by key. ``now`` is given by the caller: monotonic, in seconds."""

    _known: dict[str, _Condition] = field(default_factory=dict)

    def met(self, key: str, text: str, now: float) -> bool:
        """Take note that a condition is met. Whether that is new, or its text is, and so is to be told."""
        condition = self._known.get(key)
        if condition is not None and condition.text == text:
            condition.times += 1
            return False
        self._known[key] = _Condition(text, condition.began if condition else now)
        return True

    @property
    def keys(self) -> frozenset[str]:
        """What is the matter at present."""
        return frozenset(self._known)

    def over(self, key: str, now: float) -> str:
        """Take note that it is met no more: how often it was, and for how long; empty where it was not."""
        condition = self._known.pop(key, None)
        if condition is None:
            return ""
        return f"seen {condition.times} times in {now - condition.began:.0f} s"
