# SPDX-License-Identifier: MIT
"""Slots of a fleet: at most N VMs of a group, over all hosts, are down for a change at a time.

May import: `agent.config`, `agent.digests`, `agent.printable`, `agent.errors`.
Never: what a VM needs, and when; secrets of VMs, or anything that is derived from them.
"""
