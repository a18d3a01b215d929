# SPDX-License-Identifier: MIT
"""The daemon: the loop of looks, what it reports, its metrics, and what it publishes about VMs.

May import: `agent.control`, `agent.rollout`, `agent.fleet`, `agent.reconcile`, `agent.systemd`,
`agent.audit`, `agent.store`, `agent.source`, `agent.config`, `agent.sealing`, `agent.log`, `agent.messages`,
`agent.journald`, `agent.hardening`, `agent.errors`, `agent`.
Never: a rule about one VM: that belongs to `reconcile` or `rollout`.
"""
