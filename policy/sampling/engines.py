"""The interface for sampling engines: our own loop (policy/sampling/rollout.py:collect_rollout) or any other callable.

A serving engine can be used this way. PPO computes log-probabilities of the sampled tokens with the policy itself, so
the engine's own arithmetic does not affect the ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel

from policy.encoding import pad
from policy.precision import reads_model
from policy.sampling.rollout import Rollout, as_rollout


class RolloutEngine(Protocol):
    """Samples answers to prompts given as ids, in their order; a prompt's `answers_each` answers follow each other.

    Every token is sampled from softmax(logits / temperature) of `model` with its weights at the time of the call. PPO
    changes them between calls, so an engine with its own copy must update it first. An answer ends with `eos_id` or
    after `max_new_tokens`. `rng` is the only source of randomness, so that a run can be repeated."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        batch_size: int,
        eos_id: int,
        pad_id: int,
        rng: torch.Generator,
        answers_each: int = 1,
    ) -> Rollout: ...


def rollout_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], eos_id: int, pad_id: int, device: torch.device
) -> Rollout:
    """Turn an engine's answers, one for each prompt, into a rollout. A complete answer ends with EOS.

    Raises ValueError if an answer is missing, empty, or goes on after EOS."""
    if len(answers) != len(prompts):
        raise ValueError(f"{len(answers)} answers to {len(prompts)} prompts; an engine must answer each, in order")
    for i, answer in enumerate(answers):
        if not answer or eos_id in answer[:-1]:
            state = "goes on after EOS" if answer else "is empty"
            raise ValueError(f"the engine's answer {i} {state}; return the sampled tokens, with EOS only as the last")
    ended = torch.tensor([answer[-1] == eos_id for answer in answers], device=device)
    return as_rollout(prompts, answers, pad_id, device)._replace(ended=ended)


@torch.no_grad()
@reads_model
def transformers_rollout(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    eos_id: int,
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
        eos_token_id=eos_id if eos_id >= 0 else None,
        pad_token_id=pad_id,
    )
    rows = [list(prompt) for prompt in prompts for _ in range(answers_each)]
    answers: list[list[int]] = []
    on_gpu = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(on_gpu):  # `generate` draws from the global generator
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=rng, device=rng.device)))
        for start in range(0, len(rows), batch_size):
            ids, mask = (part.to(model.device) for part in pad(rows[start : start + batch_size], pad_id, "left"))
            written = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=plain)
            for answer in written[:, ids.shape[1] :].tolist():
                answers.append(answer[: answer.index(eos_id) + 1] if eos_id in answer else answer)
    return rollout_of(rows, answers, eos_id, pad_id, model.device)
