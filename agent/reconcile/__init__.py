# SPDX-License-Identifier: MIT
"""From what is published, sealed and running to what is due: observe, compare, decide, seal.

May import: `store`, `source`, `sealing`, `config`, `audit`.
Never: a restart: what is due is done by `rollout`.
"""
