"""Between stages 1 and 2: `python scripts/comparisons.py --config RECIPE` is `triptych comparisons --config RECIPE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not scripts/: its evaluate.py would hide a library's
    from pipeline.__main__ import stage_script

    stage_script("comparisons")
