"""Score a bucket: ``ray job submit --working-dir . -- python jobs/score.py --source … --model … --output …``."""

import sys
from pathlib import Path

# A submitted job has the working directory, not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vidray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
