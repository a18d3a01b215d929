# SPDX-License-Identifier: MIT
"""A whole Debian as a host: under QEMU, with its own kernel, UEFI firmware, and a TPM if it has one.

A throwaway host of `tests.support.host` shares this machine's kernel, so it has no device of its own. This
one boots in about a minute under software emulation. Only tests at night boot it.
"""

from __future__ import annotations

from .build import built
from .machine import Machine
from .software import install

__all__ = ["Machine", "built", "install"]
