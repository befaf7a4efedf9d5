"""`python -m hanlin`."""

import sys

from hanlin.cli.main import main

sys.exit(main())
