"""Every causal language model of transformers is exact, exact in a slower way, or refused: never wrong."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from scripts.architectures import PAGE, PARTS_BEGIN, PARTS_END, STATES, parts_list, table, with_parts, with_table
from scripts.conformance import language, reference
from scripts.conformance.configs import NOT_TRIED, config_of, names
from scripts.conformance.parts import FOUND, Parts, try_in_parts
from scripts.conformance.trial import Outcome, try_architecture

SLOW = pytest.mark.slow
# Each for another way in which an architecture differs from Llama.
QUICK = {
    "llama": "exact",
    "mistral": "exact",  # a window in all layers
    "qwen3": "exact",
    "gemma2": "slower",  # a cap on the logits, windows in half of the layers
    "gemma3": "exact",  # a language model inside a model for images
    "granite": "slower",  # a scale on the logits, no sequence-classification class
    "cohere": "slower",
    "gpt2": "exact",  # learned positions
    "bloom": "slower",  # positions made from the mask
    "gpt_oss": "slower",
    "mamba": "slower",  # a state in place of keys and values
    "qwen3_5_text": "slower",  # both
    "phi3, longrope": "limited",  # a long neighbour changes what is read
    "bert": "refused",
}


@pytest.fixture(autouse=True)
def without_their_warnings() -> Iterator[None]:
    """Architectures warn of kernels that are not installed, and of settings that only matter on a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture_of_the_dozen_is_exact_or_refused(name: str) -> None:
    found = try_architecture(name)
    assert found.state == QUICK[name], found.notes


@SLOW
@pytest.mark.parametrize("name", [name for name in names() if name not in NOT_TRIED])
def test_every_architecture_is_exact_or_refused_and_as_the_table_says(name: str) -> None:
    found = try_architecture(name)
    assert found.state in STATES, found.notes
    row = table([found]).splitlines()[-1]
    assert row in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_table_names_the_tested_version_of_transformers_and_every_architecture() -> None:
    text = PAGE.read_text(encoding="utf-8")
    pinned = re.search(r"^transformers==(\S+)$", Path("constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned and f"transformers {pinned[1]}:" in text and transformers.__version__ == pinned[1]
    assert set(names()) == set(re.findall(r"^\| ([^|]+?) \| (?:exact|in part|refused|not tried)", text, re.MULTILINE))


def test_the_table_replaces_only_what_is_between_its_markers() -> None:
    page = PAGE.read_text(encoding="utf-8")
    changed = with_table(page, [Outcome("llama", "exact")])
    assert "| llama | exact |  |" in changed
    assert changed.split("<!-- made by")[0] == page.split("<!-- made by")[0]
    assert changed.split("<!-- end -->")[1] == page.split("<!-- end -->")[1]


PARTED = {
    "llama": "exact",
    "gpt2": "exact",
    "mamba": "exact",
    "openai-gpt": "differs",
    "zamba": "shared",
    "bert": "not read",
}


def said_of_parts(name: str) -> list[str]:
    """The lines of the page that name an architecture which cannot be read in two parts."""
    block = PAGE.read_text(encoding="utf-8").split(PARTS_BEGIN)[1].split(PARTS_END)[0]
    rows = re.findall(r"^- \*\*(.+?)\*\*: (.+(?:\n  .+)*)$", block, re.MULTILINE)
    return [words for words, named in rows if name in " ".join(named.split()).split("; ")]


@pytest.mark.parametrize("name", PARTED)
def test_an_architecture_is_read_in_two_parts_or_refused_as_the_page_says(name: str) -> None:
    assert try_in_parts(name).state == PARTED[name]
    assert said_of_parts(name) == ([] if PARTED[name] == "exact" else [FOUND[PARTED[name]]])


@SLOW
@pytest.mark.parametrize("name", names())
def test_the_page_says_of_every_architecture_whether_it_is_read_in_two_parts(name: str) -> None:
    state = try_in_parts(name).state
    assert said_of_parts(name) == ([] if state == "exact" else [FOUND[state]])


def test_the_list_of_parts_replaces_only_what_is_between_its_markers() -> None:
    page = PAGE.read_text(encoding="utf-8")
    changed = with_parts(page, [Parts("llama", "exact"), Parts("zamba", "shared")])
    assert "1 of 2 are exact" in changed and f"- **{FOUND['shared']}**: zamba" in parts_list([Parts("zamba", "shared")])
    assert changed.split(PARTS_BEGIN)[0] == page.split(PARTS_BEGIN)[0]
    assert changed.split(PARTS_END)[1] == page.split(PARTS_END)[1]


def test_a_token_drawn_from_another_texts_distribution_is_found() -> None:
    """The check of sampling would see a cache whose rows were exchanged."""
    model = try_model("llama")
    whole = reference.in_float64(model)
    assert language.sampling_gap(model, whole, 1) < reference.EXACT
    other = reference.in_float64(try_model("llama", seed=1))
    assert language.sampling_gap(model, other, 1) > 0.1


def try_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    from policy.reading.twin import tiny_twin

    return tiny_twin(config_of(name), seed)


def test_the_reference_in_float64_leaves_the_model_as_it_was() -> None:
    model = try_model("mistral")
    assert reference.in_float64(model).dtype == torch.float64 and model.dtype == torch.float32
