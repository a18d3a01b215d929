# SPDX-License-Identifier: MIT
"""Restarts: order, limits, checks before a restart, judging the result, rollback, operators' orders.

May import: `agent.reconcile`, `agent.systemd`, `agent.audit`, `agent.store`, `agent.config`,
`agent.printable`, `agent.errors`, `launcher.handoff`.
Never: D-Bus calls of its own: it asks a `SystemManager`.
"""
