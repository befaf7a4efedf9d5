"""`python -m hanlin.reference [ROOT]`: writes the pages of the settings into a checkout (`make reference`)."""

from __future__ import annotations

import sys
from pathlib import Path

from hanlin.reference.page import PAGES, settings_page

for _language, _name in PAGES.items():
    (Path(sys.argv[1] if len(sys.argv) > 1 else ".") / _name).write_text(settings_page(_language), encoding="utf-8")
