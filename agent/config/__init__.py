# SPDX-License-Identifier: MIT
"""The configuration: its keys, how it is read, and what is refused.

May import: `agent.digests`, `agent.errors`, `launcher.handoff`.
Never: anything that looks at the host beyond the file, except systemd-analyze for windows.
"""
