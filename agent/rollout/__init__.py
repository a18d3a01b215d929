# SPDX-License-Identifier: MIT
"""Restarts and pushes: order, limits, checks before them, judging the result, rollback, operators' orders.

May import: `agent.fleet`, `agent.reconcile`, `agent.systemd`, `agent.audit`, `agent.store`, `agent.config`,
`agent.messages`, `agent.printable`, `agent.errors`, `launcher.handoff`, `launcher.errors`.
Never: D-Bus calls of its own: it asks a `SystemManager`.
"""
