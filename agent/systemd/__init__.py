# SPDX-License-Identifier: MIT
"""Units over D-Bus: their states, restarts and wiring, and polkit's rule for an agent without root.

May import: `agent.audit`, `agent.config`, `agent.log`, `agent.bus`, `agent.messages`, `agent.errors`,
`launcher.handoff`.
Never: when or why a unit is restarted.
"""
