"""The wheel puts seven names straight into site-packages; pip does not notice when another wheel overwrites one."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data_schema", "checkpoint_store", "policy", "reward", "stages", "pipeline", "workbench")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_name_is_owned_by_triptych_alone(package: str) -> None:
    # an editable install owns no files, so the list may be empty
    assert set(metadata.packages_distributions().get(package, [])) <= {"triptych"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_that_python_finds_is_this_one(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    assert [Path(place).resolve() for place in spec.submodule_search_locations] == [(ROOT / package).resolve()]
