# SPDX-License-Identifier: MIT
"""The daemon that ferries rotated secrets into microVMs, and the operator's command `credferry`."""

__version__ = "0.1.0"
