"""``python -m pyrocg``: the command line."""

import sys

if __name__ == "__main__":
    from pyrocg.cli import main

    sys.exit(main())
