"""Everything that would keep a recipe from running, in one list, before anything heavy starts."""

from hanlin.checking.recipe import Checked, Purpose, check, check_file, check_source
from hanlin.checking.rows import TRIED_ROWS
from hanlin.checking.short_runs import short_run_remark

__all__ = ["TRIED_ROWS", "Checked", "Purpose", "check", "check_file", "check_source", "short_run_remark"]
