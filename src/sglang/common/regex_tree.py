"""Python's own parser of regular expressions, and the codes of its trees, wherever this version has them."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

__all__ = ["codes", "parser"]
