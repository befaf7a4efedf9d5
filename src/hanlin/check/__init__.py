"""Everything that would keep a recipe from running, in one list, before anything heavy starts."""

from hanlin.check.recipe import Purpose, check, check_file

__all__ = ["Purpose", "check", "check_file"]
