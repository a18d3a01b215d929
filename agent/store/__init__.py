# SPDX-License-Identifier: MIT
"""Generations of sealed credentials on disk, small records beside them, and durable writes.

May import: `agent.config`, `agent.sealing`, `agent.untrusted`, `agent.errors`,
`launcher.handoff`.
Never: a decision, or a call to systemd.
"""
