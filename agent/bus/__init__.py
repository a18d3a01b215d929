# SPDX-License-Identifier: MIT
"""The connection to D-Bus, and the names on it that several rooms use.

May import: `agent.errors`.
Never: what a call means: systemd's calls are in `systemd`, the agent's own interface is in `control`.
"""
