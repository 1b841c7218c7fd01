#!/usr/bin/env bash
# Checks and measures triptych on a GPU in one call of less than ten minutes; the arguments are those of gpu_check.py:
#   benchmarks/gpu_check.sh [--peer-python PATH] [--only PART ...] [--minutes 9.5] [--cpu]
# PYTHON names the Python with the packages of constraints.txt (default: .venv/bin/python if it is there, else python3).
set -u
cd "$(dirname "$0")/.."
python="${PYTHON:-}"
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
missing=$("$python" - <<'END' 2>&1
import importlib.util
names = "accelerate datasets peft pytest pytest_timeout safetensors torch transformers trl wandb yaml".split()
print(*[name for name in names if importlib.util.find_spec(name) is None])
END
) || { echo "gpu_check: cannot run $python; set PYTHON to the Python with the packages of constraints.txt" >&2; exit 1; }
if [ -n "$missing" ]; then
    echo "gpu_check: $python lacks $missing; run: pip install -c constraints.txt -e '.[dev]'" >&2
    exit 1
fi
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"  # one GPU: transformers' Trainer would spread over all
export PYTHONUNBUFFERED=1
exec "$python" benchmarks/gpu_check.py "$@"
