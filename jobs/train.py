"""Fine-tune: ``ray job submit --working-dir . -- python jobs/train.py --source … --model … --output … --workers 4``."""

import sys
from pathlib import Path

# A submitted job has the working directory, not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vidray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
