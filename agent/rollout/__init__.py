# SPDX-License-Identifier: MIT
"""Restarts: order, limits, checks before a restart, judging the result, rollback, operators' orders.

May import: `reconcile`, `store`, `systemd`, `audit`, `config`.
Never: D-Bus calls of its own: it asks a `SystemManager`.
"""
