"""``python -m pyrocg``: the command line."""

import sys

from pyrocg.cli import main

sys.exit(main())
