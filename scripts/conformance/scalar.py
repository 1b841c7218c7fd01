"""What stages compute with a scalar model, held against the forward pass of its class and of its body."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.reading.body import body_of
from policy.sampling.rollout import as_rollout
from reward.frozen_layers import cut_after, mean_states
from reward.scalar_model import from_language_model, response_scores, response_values
from scripts.conformance.reference import ANSWERS, CPU, PAD, PROMPTS, gap, in_float64, own_score, own_values, texts
from stages.reward_model.trainer import Ranking, RankingCollator, RankingModule, shares_prompts


def scalar_checks(folder: Path, size: int) -> dict[str, Callable[[], float]]:
    """Each check by name, of the scalar model on the language model in a folder, with a vocabulary of `size`."""
    model = reference = None

    def build() -> tuple[PreTrainedModel, PreTrainedModel]:
        nonlocal model, reference
        if model is None or reference is None:
            model = from_language_model(folder, CPU, seed=0).eval()
            reference = in_float64(model)
        return model, reference

    def scores() -> float:
        scorer, own = build()
        prompts, answers = texts(1, PROMPTS, size), texts(2, ANSWERS, size)
        with torch.no_grad():
            found = response_scores(scorer, as_rollout(prompts, answers, PAD, CPU))
        want = [own_score(own, prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return gap(found, torch.tensor(want))

    def values() -> float:
        scorer, own = build()
        prompts, answers = texts(1, PROMPTS, size), texts(2, ANSWERS, size)
        with torch.no_grad():
            found = response_values(scorer, as_rollout(prompts, answers, PAD, CPU))
        worst = 0.0
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            want = own_values(own, prompt + answer)[len(prompt) - 1 : -1]
            worst = max(worst, gap(found[i, : len(answer)], want))
        return worst

    def rankings() -> float:
        scorer, own = build()
        few = [
            Ranking(texts(30 + i, (n,), size)[0], texts(40 + i, lengths, size), tuple(range(1, len(lengths) + 1)))
            for i, (n, lengths) in enumerate([(6, (5, 4)), (5, (3, 5, 2)), (4, (4, 4)), (6, (2, 3)), (20, (14, 9, 11))])
        ]
        collator = RankingCollator(PAD, 10**6, shares_prompts(scorer, few), 0)
        with torch.no_grad():
            found = RankingModule(scorer)(**collator.part(few, len(few))["packed"])
        want = [own_score(own, each.prompt + answer) for each in few for answer in each.responses]
        return gap(found, torch.tensor(want))

    def frozen() -> float:
        scorer = from_language_model(folder, CPU, seed=0).eval()
        few = [Ranking(texts(50 + n, (n,), size)[0], texts(60 + n, (3, 9), size), (1, 2)) for n in (4, 11, 5)]
        collator = RankingCollator(PAD, 10**6, shares_prompts(scorer, few), 0)
        try:
            cut_after(scorer, 1)
            found = mean_states(scorer, collator.pack(few))
        except ModelError:  # the setting is refused, and the model can be used without it
            return 0.0
        given: list[Tensor] = []
        attention: Any = body_of(scorer).layers[-1].self_attn
        attention.register_forward_pre_hook(
            lambda _, args, named: given.append(args[0] if args else named["hidden_states"]), with_kwargs=True
        )
        for each in few:
            for answer in each.responses:
                own_score(scorer, each.prompt + answer)
        return gap(found, torch.stack([states[0].mean(0) for states in given]))

    return {"scores": scores, "values": values, "rankings": rankings, "frozen layers": frozen}
