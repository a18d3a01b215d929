# SPDX-License-Identifier: MIT
"""The published secrets: one consistent snapshot, the watches on the way to it, and settling.

May import: `agent.config`, `agent.sealing`, `agent.digests`, `agent.messages`, `agent.errors`,
`launcher.handoff`.
Never: what a secret is for, or which VM uses it.
"""
