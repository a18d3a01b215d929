# SPDX-License-Identifier: MIT
"""The agent on D-Bus: the interface that it serves, and the client that verbs use.

May import: `agent.rollout`, `agent.reconcile`, `agent.audit`, `agent.config`, `agent.log`, `agent.bus`,
`agent.messages`, `agent.errors`, `agent`.
Never: a decision, or work on the loop's thread.
"""
