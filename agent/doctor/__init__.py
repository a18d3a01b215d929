# SPDX-License-Identifier: MIT
"""What `credferry doctor` examines: one file for each link from the source to the guest.

May import: rooms that read: `reconcile`, `store`, `systemd`, `audit`, `config`.
Never: a change to the host: the doctor prints commands and runs none.
"""
