# SPDX-License-Identifier: MIT
"""systemd's encrypted credentials, and the keys of the host and of guests.

May import: `agent.digests`, `agent.errors`.
Never: files of the store, or anything about VMs.
"""
