# SPDX-License-Identifier: MIT
"""The agent: the daemon that ferries rotated secrets into VMs, and the operator's command.

May import: of the launcher, `launcher.handoff` alone.
Never: code that the launcher needs.
"""

__version__ = "0.2.0"
