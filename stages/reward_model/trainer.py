"""Training of the reward model: batches of rankings, InstructGPT's loss, on Hugging Face's Trainer.

A prompt and all its answers are one sequence, in which the prompt is computed once (reward/shared_prompt.py). All their
pairs are one batch element, however a step is split into parts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from policy.language_model import bare
from reward.ranking_loss import PairIndex, kwise_ranking_loss, pair_index, smoothed, voted_pair_index
from reward.shared_prompt import PackedAnswers, can_share_prompt, pack_answers, packed_scores
from stages.reward_model.settings import LabelConfig

logger = logging.getLogger("triptych.reward_model")


class Ranking(NamedTuple):
    """A comparison, encoded as ids."""

    prompt: list[int]
    responses: list[list[int]]  # each with its EOS token
    ranks: tuple[int, ...]  # 1 = best, equal = tie
    margin: float | None = None  # how much better the better answer is, if the data say so
    votes: tuple[tuple[int, ...], ...] = ()  # the ranks of each labeler, if several were merged

    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


def merge_labelers(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Merge rankings of the same prompt and answers into one, with each labeler's ranks as votes."""
    groups: dict[Any, list[Ranking]] = {}
    for ranking in rankings:
        key = (tuple(ranking.prompt), tuple(sorted(map(tuple, ranking.responses))))
        groups.setdefault(key, []).append(ranking)
    return [same[0]._replace(votes=tuple(_in_order_of(same[0], each) for each in same)) for same in groups.values()]


def _in_order_of(first: Ranking, other: Ranking) -> tuple[int, ...]:
    rank = dict(zip(map(tuple, other.responses), other.ranks, strict=True))
    return tuple(rank[tuple(response)] for response in first.responses)


def shares_prompts(model: PreTrainedModel, rankings: Sequence[Ranking]) -> bool:
    """Whether this model can compute a prompt once for all its answers, for texts as long as these."""
    longest = max((len(r.prompt) + max(map(len, r.responses)) for r in rankings), default=0)
    able = can_share_prompt(model, longest)
    if not able:
        logger.info("reward_model: %s reads the prompt again for each answer", type(model).__name__)
    return able


class RankingModule(nn.Module):
    """The scalar model with a plain `forward`, so that the Trainer's wrappers apply to every pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **packed: Tensor) -> Tensor:
        """Tensors of a PackedAnswers -> (answers,) raw scores."""
        return packed_scores(bare(self.model), PackedAnswers(**packed), normalised=False)


class RankingCollator:
    """Splits the rankings of an optimiser step into parts of at most `tokens` tokens (0: one part), each with all pairs
    of its prompts. Pair weights sum to 1 over all parts, so the parts' losses sum to the loss of the step."""

    def __init__(
        self, pad_id: int, hidden_size: int, share_prompts: bool, tokens: int, labels: LabelConfig | None = None
    ) -> None:
        self.pad_id, self.hidden_size, self.share_prompts, self.tokens = pad_id, hidden_size, share_prompts, tokens
        self.labels = labels or LabelConfig()

    def __call__(self, rankings: Sequence[Ranking]) -> dict[str, Any]:
        return {"parts": [self.part(rows, len(rankings)) for rows in self.parts(rankings)]}

    def parts(self, rankings: Sequence[Ranking]) -> list[list[Ranking]]:
        """Group rankings of similar length. One that exceeds the limit by itself is a part of its own."""
        if not self.tokens:
            return [list(rankings)]
        parts: list[list[Ranking]] = []
        held = 0
        for ranking in sorted(rankings, key=Ranking.n_tokens):
            ids = self.pack([ranking]).ids
            if not parts or held + ids.numel() > self.tokens:
                parts.append([])
                held = 0
            parts[-1].append(ranking)
            held += ids.numel()
        return parts

    def pack(self, rankings: Sequence[Ranking]) -> PackedAnswers:
        prompts, answers = [r.prompt for r in rankings], [r.responses for r in rankings]
        return pack_answers(prompts, answers, self.pad_id, self.hidden_size, self.share_prompts)

    def part(self, rankings: Sequence[Ranking], n_prompts: int) -> dict[str, Any]:
        return {"packed": self.pack(rankings)._asdict(), "pairs": self.pairs(rankings, n_prompts)._asdict()}

    def pairs(self, rankings: Sequence[Ranking], n_prompts: int) -> PairIndex:
        if self.labels.merge_labelers:
            pairs = voted_pair_index([ranking.votes for ranking in rankings], n_prompts)
        else:
            margins = [ranking.margin for ranking in rankings] if self.labels.margins else None
            pairs = pair_index([ranking.ranks for ranking in rankings], n_prompts=n_prompts, margins=margins)
        return smoothed(pairs, self.labels.noise) if self.labels.noise else pairs


class RankingTrainer(Trainer):
    """Hugging Face's Trainer with InstructGPT's ranking loss, computed part by part within a step."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        model.train()
        total = torch.zeros((), device=self.args.device)
        right = margin = n_pairs = 0.0
        for part in self._prepare_inputs(inputs)["parts"]:
            pairs = PairIndex(**part["pairs"])
            with self.compute_loss_context_manager():
                rewards = model(**part["packed"])
                loss = kwise_ranking_loss(rewards, pairs)
            self.accelerator.backward(loss)
            total += loss.detach()
            if self.state.global_step % self.args.logging_steps == 0:
                difference = rewards.detach()[pairs.winner] - rewards.detach()[pairs.loser]
                right += (difference > 0).sum().item()
                margin += difference.sum().item()
                n_pairs += len(difference)
        if n_pairs:
            self.log({"pair_accuracy": right / n_pairs, "margin": margin / n_pairs})
        return total
