"""A whole night: ``ray job submit --working-dir . -- python jobs/nightly.py --config nightly.yaml``."""

import sys
from pathlib import Path

# A submitted job has the working directory, not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vidray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
