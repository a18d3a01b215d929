# SPDX-License-Identifier: MIT
"""What is generated from the code: completions, manual pages, schemas, pages of the reference.

`make docs` writes them all.
"""
