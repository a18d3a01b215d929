# SPDX-License-Identifier: MIT
"""A push's parts: the VM's vsock socket, the check of who listens there, and the guest's protocol.

May import: Python's standard library, `launcher.handoff`, `launcher.record`, `launcher.errors`.
Never: the way of the credentials to the push.
"""
