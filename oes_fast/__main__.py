"""``python -m oes_fast``: the command line."""

import sys

from oes_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
