"""`python -m hanlin.reference [ROOT]`: writes the pages of the settings into a checkout (`make reference`)."""

from __future__ import annotations

import sys
from pathlib import Path

from hanlin.reference.page import write_pages

write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
