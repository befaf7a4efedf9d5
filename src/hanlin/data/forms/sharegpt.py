"""ShareGPT: {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}.

The turns may as well be named by role and content; "system" and "tools" may stand beside them.
"""

from __future__ import annotations

from hanlin.data.forms.messages import dialogue_form

FORM = dialogue_form("sharegpt", "ShareGPT", ("conversations", "conversation"))
