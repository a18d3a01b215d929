# SPDX-License-Identifier: MIT
"""The agent on D-Bus: the interface that it serves, and the client that verbs use.

May import: `rollout` for orders, `reconcile` for states, `audit`, `bus`.
Never: a decision, or work on the loop's thread.
"""
