# SPDX-License-Identifier: MIT
"""The launcher: it stands where cloud-hypervisor's binary stands and adds the credentials.

May import: Python's standard library, `launcher.spec`, `launcher.trust`, `launcher.hypervisor`,
`launcher.handoff`, `launcher.record`, `launcher.errors`.
Never: anything of the agent; it is on each VM's boot path.
"""
