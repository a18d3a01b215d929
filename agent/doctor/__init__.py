# SPDX-License-Identifier: MIT
"""What `credferry doctor` looks at: one module a link of the chain, walked by `examination`."""
