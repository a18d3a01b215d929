# SPDX-License-Identifier: MIT
"""The daemon: the loop of looks, what it reports, its metrics, and what it publishes about VMs.

May import: every room but `cli` and `doctor`.
Never: a rule about one VM: that belongs to `reconcile` or `rollout`.
"""
