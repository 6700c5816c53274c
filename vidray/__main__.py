"""``python -m vidray`` is the command ``vidray``."""

import sys

from vidray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
