"""Draw curves: `python scripts/plot_curves.py RUN ... --out FILE` runs `triptych curves RUN ... --out FILE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not scripts/, whose evaluate.py would shadow a library
    from pipeline.__main__ import stage_script

    stage_script("curves")
