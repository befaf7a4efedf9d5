"""Everything that would keep a recipe from running, in one list, before anything heavy starts."""

from hanlin.check.recipe import Purpose, check, check_file
from hanlin.check.rows import TRIED_ROWS

__all__ = ["TRIED_ROWS", "Purpose", "check", "check_file"]
