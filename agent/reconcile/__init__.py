# SPDX-License-Identifier: MIT
"""Finds out what is due from what is published, sealed and running: observe, compare, decide, seal.

May import: `agent.systemd`, `agent.audit`, `agent.store`, `agent.source`, `agent.config`, `agent.sealing`,
`agent.digests`, `agent.messages`, `agent.untrusted`, `agent.errors`, `launcher.handoff`.
Never: a restart; `rollout` does the restarts that are due.
"""
