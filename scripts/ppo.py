"""Stage 3: `python scripts/ppo.py --config RECIPE` is `triptych ppo --config RECIPE`, from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not scripts/: its evaluate.py would hide a library's
    from pipeline.__main__ import stage_script

    stage_script("ppo")
