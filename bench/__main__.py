"""`python -m bench`: see `--help`."""

import sys

from bench.main import main

sys.exit(main())
