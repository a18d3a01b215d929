# SPDX-License-Identifier: MIT
"""Makes a release: `make release VERSION=X.Y.Z` checks the tree, dates the changelog, commits and tags."""
