"""What stages compute with a language model, held against its own forward pass."""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTConfig

from policy.adapters import add_lora
from policy.answer_likelihood import Question, answer_logprobs
from policy.errors import ModelError
from policy.language_model import LanguageModel, bare
from policy.pretraining import pretraining_loss
from policy.reading.ways import reading_of
from policy.sampling import generate
from policy.sampling.rollout import as_rollout, collect_rollout, response_logprobs
from scripts.conformance.reference import (
    ANSWERS,
    CPU,
    PAD,
    PROMPTS,
    gap,
    in_float64,
    own_logprobs,
    picked,
    texts,
    vocabulary,
)
from stages.sft.stage import held_out_loss
from stages.sft.trainer import IGNORED, DemonstrationTrainer, PackingCollator

TEMPERATURE = 0.7
STOPS = tuple(range(10, 30))  # many, so that most answers end early


def language_checks(loaded: LanguageModel) -> dict[str, Callable[[], float]]:
    """Each check by name; it returns the largest difference from the reference."""
    model = loaded.model.eval()
    own, size, spare = in_float64(model), vocabulary(model), copy.deepcopy(model)
    prompts, answers = texts(1, PROMPTS, size), texts(2, ANSWERS, size)

    def logprobs() -> float:
        found = response_logprobs(model, as_rollout(prompts, answers, PAD, CPU), TEMPERATURE)
        worst = 0.0
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            want = own_logprobs(own, prompt, answer, TEMPERATURE)
            entropy = -(want.exp() * want).sum(-1)
            for ours, theirs in ((found.logprobs, picked(want, answer)), (found.entropy, entropy)):
                worst = max(worst, gap(ours[i, : len(answer)], theirs))
        return worst

    def likelihood() -> float:
        sets = [texts(3 + i, lengths, size) for i, lengths in enumerate(((9, 1, 4), (1, 1), (15,), (2, 8), (3, 3)))]
        found = answer_logprobs(model, [Question(*pair) for pair in zip(prompts, sets, strict=True)], 200)
        want = [
            [float(picked(own_logprobs(own, prompt, answer, 1.0), answer).sum()) for answer in given]
            for prompt, given in zip(prompts, sets, strict=True)
        ]
        return gap(torch.tensor([*chain(*found)]), torch.tensor([*chain(*want)]))

    def text_loss() -> float:
        rows = texts(10, (19, 19, 19), size)
        want = -torch.cat([picked(own_logprobs(own, row[:1], row[1:], 1.0), row[1:]) for row in rows]).mean()
        with torch.no_grad():
            return gap(pretraining_loss(model, torch.tensor(rows)), want)

    demonstrations = demonstration_rows(prompts, answers)
    nats = [
        -float(picked(own_logprobs(own, prompt, answer, 1.0), answer).sum())
        for prompt, answer in zip(prompts, answers, strict=True)
    ]

    def held_out() -> float:
        found = held_out_loss(model, Dataset.from_list(demonstrations), CPU)
        assert [tokens for _, tokens in found] == list(ANSWERS)
        return gap(torch.tensor([each for each, _ in found]), torch.tensor(nats))

    def slopes() -> float:
        rollout = as_rollout(prompts, answers, PAD, CPU)
        model.zero_grad()
        response_logprobs(model, rollout, 1.0).logprobs.sum().backward()
        return slope_gap(slope_of(model), own_slope(own, prompts, answers))

    def adapters() -> float:
        try:
            adapted = bare(add_lora(spare, 4, 8.0, "all-linear", "CAUSAL_LM"))
        except ModelError:  # refused, and the model can be used without
            return 0.0
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:  # zero until it is trained
                    weight.normal_(0.0, 0.1, generator=rng)
            found = response_logprobs(adapted, as_rollout(prompts, answers, PAD, CPU), 1.0).logprobs
        want = [
            picked(own_logprobs(adapted, prompt, answer, 1.0), answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return max(gap(ours[: len(theirs)], theirs) for ours, theirs in zip(found, want, strict=True))

    def sft() -> float:
        loss, slope = sft_step(loaded, demonstrations)
        off = abs(loss - sum(nats) / sum(ANSWERS))
        return max(off, slope_gap(slope, -own_slope(own, prompts, answers) / sum(ANSWERS)))

    return {
        "log-probabilities": logprobs,
        "answers' likelihood": likelihood,
        "pretraining loss": text_loss,
        "sampling": lambda: sampling_gap(model, own, 1),
        "sampling, 3 answers": lambda: sampling_gap(model, own, 3),
        "gradients": slopes,
        "adapters": adapters,
        "held-out loss": held_out,
        "SFT's loss": sft,
        "held-out loss after SFT": held_out,  # TRL's trainer replaces the model's forward
    }


def demonstration_rows(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[dict[str, Any]]:
    return [
        {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + answer}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def slope_of(model: PreTrainedModel) -> Tensor:
    """The gradient at the input embedding, on which everything above it has an effect."""
    grad: Tensor = model.get_input_embeddings().weight.grad
    return grad.double()


def slope_gap(found: Tensor, want: Tensor) -> float:
    """Relative to the largest element, and in tenths: a gradient has more rounding error than a value."""
    return float((found - want).abs().max() / want.abs().max()) / 10


def own_slope(own: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
    """The gradient of the sum of all answers' log-probabilities, through the model's own forward passes."""
    own.zero_grad()
    # A cache may be overwritten, which a gradient does not allow.
    apart = {"use_cache": False} if "use_cache" in inspect.signature(own.forward).parameters else {}
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = own(input_ids=torch.tensor([prompt + answer]), **apart).logits[0, len(prompt) - 1 : -1]
        picked(logits.log_softmax(-1), answer).sum().backward()
    found = slope_of(own)
    own.zero_grad()
    return found


def sft_step(loaded: LanguageModel, demonstrations: Sequence[dict[str, Any]]) -> tuple[float, Tensor]:
    """Mean loss of a step as SFT's trainer computes it, and its gradient."""
    loaded.model.zero_grad()
    rows = reading_of(loaded.model).rows
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DemonstrationTrainer(
            loaded.model,
            args=SFTConfig(
                folder,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to=[],
                use_cpu=True,
                gradient_checkpointing=None,  # type: ignore[arg-type]  # TRL's name for it, on by default
                activation_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(list(demonstrations)),
            data_collator=PackingCollator(PAD, packed=rows == "packed"),
            processing_class=loaded.tokenizer,
        )
        apart = [[row] for row in demonstrations] if rows in ("equal", "single") else [list(demonstrations)]
        trainer.current_gradient_accumulation_steps = len(apart)
        total = torch.tensor(sum(ANSWERS))
        loss = 0.0
        for batch in apart:
            inputs = trainer.data_collator(batch)
            part = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=total)
            part.backward()
            loss += float(part.detach())
    return loss, slope_of(loaded.model)


def sampling_gap(model: PreTrainedModel, own: PreTrainedModel, answers_each: int) -> float:
    """Largest difference between a probability that a token was drawn with and that of the model's own forward pass.

    The arguments and results of policy/sampling/generate.py:draw are recorded. Every token of every answer must have
    been drawn from the distribution that its own text gives."""
    drawn: list[tuple[Tensor, int]] = []
    plain = generate.draw

    def recording(probabilities: Tensor, rng: torch.Generator | None) -> Tensor:
        tokens = plain(probabilities, rng)
        drawn.extend(zip(probabilities.clone(), tokens.tolist(), strict=True))
        return tokens

    prompts = texts(20, (13, 3, 9, 21, 3, 4), vocabulary(model))
    generate.draw = recording  # put back below
    try:
        rollout = collect_rollout(
            model,
            prompts,
            max_new_tokens=12,
            temperature=TEMPERATURE,
            batch_size=4 * answers_each,
            stop_ids=STOPS,
            pad_id=PAD,
            rng=torch.Generator().manual_seed(5),
            answers_each=answers_each,
        )
    finally:
        generate.draw = plain
    waiting = list(drawn)
    worst = 0.0
    for i, (row, mask) in enumerate(zip(rollout.responses, rollout.response_mask, strict=True)):
        answer = row[mask].tolist()
        for want, token in zip(own_logprobs(own, prompts[i // answers_each], answer, TEMPERATURE), answer, strict=True):
            gaps = [gap(floored(p.log()), floored(want)) if t == token else math.inf for p, t in waiting]
            best = min(range(len(gaps)), key=gaps.__getitem__)
            worst = max(worst, gaps[best])
            waiting.pop(best)
    return worst if not waiting else math.inf


def floored(logprobs: Tensor) -> Tensor:
    return logprobs.clamp(min=-50.0)  # float32 has no smaller probabilities
