from __future__ import annotations

import pytest

from stages.errors import ConfigError
from stages.judging import load_judge


def test_a_judge_is_found_by_module_and_function() -> None:
    from data_schema.quickstart_world import judge

    assert load_judge("data_schema.quickstart_world:judge", "evaluate.judge") is judge


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("data_schema.quickstart_world.judge", "must be 'module:function'"),
        ("no_such_module:judge", "cannot find 'no_such_module:judge'"),
        ("data_schema.quickstart_world:judges", "cannot find"),
        ("data_schema.quickstart_world:NOUNS", "is no function"),
        (":judge", "ppo.monitor"),
    ],
)
def test_a_path_that_leads_to_no_function_is_refused_with_its_key(path: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        load_judge(path, "ppo.monitor")
    assert "ppo.monitor" in str(caught.value) and "\n" not in str(caught.value)
