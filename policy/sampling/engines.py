"""The interface for sampling engines: our own loop (policy/sampling/rollout.py:collect_rollout) or any other callable.

A serving engine can be used this way. PPO computes log-probabilities of the sampled tokens with the policy itself, so
the engine's own arithmetic does not affect the ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel

from policy.encoding import pad
from policy.maths.masks import truncate_after_token
from policy.precision import reads_model
from policy.sampling.rollout import Rollout, as_rollout
from policy.special_tokens import hidden_ids


class RolloutEngine(Protocol):
    """Samples answers to prompts given as ids, in their order; a prompt's `answers_each` answers follow each other.

    Every token is sampled from softmax(logits / temperature) of `model` with its weights at the time of the call. PPO
    changes them between calls, so an engine with its own copy must update it first. An answer ends with one
    of `stop_ids` or after `max_new_tokens`. `rng` is the only source of randomness, so that a run can be repeated."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        batch_size: int,
        stop_ids: Sequence[int],
        pad_id: int,
        rng: torch.Generator,
        answers_each: int = 1,
    ) -> Rollout: ...


def rollout_of(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
) -> Rollout:
    """Turn an engine's answers, one for each prompt, into a rollout. A complete answer ends with a stop token.

    Raises ValueError if an answer is missing, empty, or goes on after a stop token."""
    if len(answers) != len(prompts):
        raise ValueError(f"{len(answers)} answers to {len(prompts)} prompts; an engine must answer each, in order")
    for i, answer in enumerate(answers):
        if not answer or not set(stop_ids).isdisjoint(answer[:-1]):
            state = "goes on after a stop token" if answer else "is empty"
            raise ValueError(
                f"the engine's answer {i} {state}; return the sampled tokens, with a stop token only as the last"
            )
    ended = torch.tensor([answer[-1] in stop_ids for answer in answers], device=device)
    return as_rollout(prompts, answers, pad_id, device)._replace(ended=ended)


@contextmanager
def generating_with(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Context in which `model.generate` follows these settings only: it takes what they leave open from the model's own
    generation config, which in a published checkpoint may set penalties, lengths or forced tokens."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before


@torch.no_grad()
@reads_model
def transformers_rollout(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    stop_ids: Sequence[int],
    pad_id: int,
    rng: torch.Generator,
    answers_each: int = 1,
) -> Rollout:
    """A `RolloutEngine` that uses Hugging Face's `generate`: slower than our loop and independent of it."""
    plain = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        suppress_tokens=list(hidden_ids(model)) or None,
    )
    rows = [list(prompt) for prompt in prompts for _ in range(answers_each)]
    answers: list[list[int]] = []
    on_gpu = [model.device] if model.device.type == "cuda" else []
    with generating_with(model, plain), torch.random.fork_rng(on_gpu):  # `generate` draws from the global generator
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=rng, device=rng.device)))
        for start in range(0, len(rows), batch_size):
            ids, mask = (part.to(model.device) for part in pad(rows[start : start + batch_size], pad_id, "left"))
            written = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=plain)
            cut = truncate_after_token(written[:, ids.shape[1] :], stop_ids, pad_id)
            answers += [row[:n] for row, n in zip(cut.responses.tolist(), cut.lengths.tolist(), strict=True)]
    return rollout_of(rows, answers, stop_ids, pad_id, model.device)
