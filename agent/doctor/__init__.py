# SPDX-License-Identifier: MIT
"""What `credferry doctor` examines: one file for each link from the source to the guest.

May import: `agent.control`, `agent.rollout`, `agent.fleet`, `agent.reconcile`, `agent.systemd`,
`agent.audit`, `agent.store`, `agent.source`, `agent.config`, `agent.sealing`, `agent.bus`, `agent.errors`,
`launcher.handoff`, `launcher.errors`.
Never: a change to the host. The doctor runs only programs that read, and prints the commands that repair.
"""
