# SPDX-License-Identifier: MIT
"""What is generated from the code: completions and manual pages. `make docs` writes them all."""
