"""All stages in order: `python scripts/pipeline.py RECIPE` runs `triptych run RECIPE` from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not scripts/, whose evaluate.py would shadow a library
    from pipeline.__main__ import main

    sys.exit(main(["run", *sys.argv[1:]]))
