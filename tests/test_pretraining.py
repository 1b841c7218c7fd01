from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data_schema import Document
from policy.errors import ModelError
from policy.language_model import LanguageModel, load_language_model
from policy.pretraining import endless_rows, pack_documents, pretraining_loss

WORDS = ["park", "dog", "saw", "backwards", "repeat"]


def documents(n: int) -> list[Document]:
    return [
        Document(text=" ".join(WORDS[(i + j) % 5] for j in range(1 + i % 7)), id=str(i), source="test")
        for i in range(n)
    ]


@pytest.mark.parametrize("n, length", [(10, 4), (2500, 7), (5, 12)])
def test_packing_joins_by_eos_and_loses_only_what_fills_no_row(tiny: LanguageModel, n: int, length: int) -> None:
    vocabulary = tiny.tokenizer.get_vocab()
    stream = [vocabulary[word] for each in documents(n) for word in [*each.text.split(), "<eos>"]]
    rows = pack_documents(tiny.tokenizer, documents(n), length)
    assert rows.dtype == torch.int32 and rows.shape == (len(stream) // length, length)
    assert rows.flatten().tolist() == stream[: len(stream) // length * length]


@pytest.mark.parametrize("n, tokens", [(2, 5), (0, 0)])
def test_text_for_less_than_a_row_is_refused(tiny: LanguageModel, n: int, tokens: int) -> None:
    with pytest.raises(ModelError, match=rf"has {tokens} tokens, less than one row of 6; give more text\.$"):
        pack_documents(tiny.tokenizer, documents(n), 6)


@pytest.mark.parametrize("n, batch", [(7, 3), (4, 4), (3, 8)])
def test_each_pass_sees_every_row_once_in_an_order_from_the_generator(n: int, batch: int) -> None:
    rows = torch.arange(n).view(n, 1) * torch.ones(1, 2, dtype=torch.long)

    def seen(seed: int) -> list[int]:
        batches = endless_rows(rows, batch, torch.Generator().manual_seed(seed))
        drawn = [next(batches) for _ in range(6 * n)]
        assert all(each.shape == (batch, 2) for each in drawn)
        return torch.cat(drawn)[:, 0].tolist()

    order = seen(0)
    passes = [tuple(order[start : start + n]) for start in range(0, 6 * n, n)]
    assert all(sorted(each) == list(range(n)) for each in passes)
    assert len(set(passes)) > 1
    assert seen(0) == order != seen(1)


def test_the_loss_and_its_gradient_are_the_plain_cross_entropy(tiny_base: Path) -> None:
    rows = torch.randint(5, 190, (3, 9), generator=torch.Generator().manual_seed(0)).int()
    results = []
    for plain in (True, False):
        model = load_language_model(tiny_base, torch.device("cpu")).model
        if plain:
            logits = model(rows.long()).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].long().flatten())
        else:
            loss = pretraining_loss(model, rows)
        loss.backward()
        results.append({"loss": loss.detach()} | {name: weight.grad for name, weight in model.named_parameters()})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, atol=1e-5, rtol=1e-4)
