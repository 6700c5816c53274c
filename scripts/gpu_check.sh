#!/bin/sh
# Tests and small benchmarks on a GPU, in under ten minutes. Needs neither Ray nor PyTorchVideo: jobs take the local
# runner, and what is not installed is left out.
#
#     PYTHON=python3 sh scripts/gpu_check.sh
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
export PYTHONPATH=.

"$PYTHON" - <<'CHECK'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("gpu-check: PyTorch sees no GPU here; see whether `nvidia-smi` does, and whether this PyTorch has CUDA: "
             f"it is {torch.__version__}")
print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
CHECK

"$PYTHON" -m pytest -m gpu --timeout 120 tests/gpu
echo "-- networks alone"
"$PYTHON" benchmarks/models.py --device cuda --compile --families videomae vjepa2 --seconds 2 --calls 3
echo "-- scoring"
"$PYTHON" benchmarks/score.py --device cuda --sizes 200 1000 --repeats 1 --settle-seconds 0
echo "-- training"
"$PYTHON" benchmarks/train.py --device cuda --num-videos 64
