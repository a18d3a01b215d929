# SPDX-License-Identifier: MIT
"""Finds out what is due from what is published, sealed and running: observe, compare, decide, seal.

May import: `store`, `source`, `sealing`, `config`, `audit`.
Never: a restart; `rollout` does the restarts that are due.
"""
