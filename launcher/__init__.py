# SPDX-License-Identifier: MIT
"""The launcher: it stands where cloud-hypervisor's binary stands and adds the credentials.

May import: Python's standard library alone.
Never: anything of the agent; it is on each VM's boot path.
"""
