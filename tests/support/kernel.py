# SPDX-License-Identifier: MIT
"""A kernel for VMs that need none."""

from __future__ import annotations

import struct


def kernel() -> bytes:
    """The smallest thing that cloud-hypervisor boots: an ELF file with a PVH entry that halts for ever."""
    base, code = 0x100000, b"\xf4\xeb\xfd"  # hlt; jmp back
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", base)  # XEN_ELFNOTE_PHYS32_ENTRY
    start = 64 + 2 * 56
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        *(2, 62, 1, base, 64, 0, 0, 64, 56, 2, 0, 0, 0),
    )
    at = start + len(note)
    load = struct.pack("<IIQQQQQQ", 1, 5, at, base, base, len(code), len(code), 1)
    notes = struct.pack("<IIQQQQQQ", 4, 4, start, 0, 0, len(note), len(note), 4)
    return head + load + notes + note + code
