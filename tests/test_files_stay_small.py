from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("data_schema", "checkpoint_store", "policy", "reward", "stages", "scripts")
MOST_LINES = 300


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_is_short_enough_to_be_read_at_once(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert lengths, f"{folder} holds no Python file"
    too_long = [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > MOST_LINES]
    assert too_long == [], f"split what has more than {MOST_LINES} lines"
