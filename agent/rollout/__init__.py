# SPDX-License-Identifier: MIT
"""Restarts: their order and limits, what is checked before, how they are judged, rollback, orders.

May import: `reconcile`, `store`, `systemd`, `audit`, `config`.
Never: D-Bus calls of its own: it asks a `SystemManager`.
"""
