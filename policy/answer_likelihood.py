"""Log-likelihoods that a model assigns to given answers.

A prompt is read once, whatever its number of answers: its keys and values (or encoder states) are copied for each. A
model for which that is not exact reads the prompt again for each answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from policy.encoding import Padded, pad
from policy.maths.logprobs import token_logprobs_from_hidden
from policy.reading.ways import reading_of
from policy.sampling.decoder import states_after_prompts
from policy.sampling.rollout import as_rollout, output_head, response_logprobs, unflatten
from policy.seq2seq import answer_token_logprobs, collate_pairs


class Question(NamedTuple):
    """A prompt and the candidate answers to compare, as ids; every answer ends with EOS."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def width(self) -> int:
        """Number of tokens of the prompt plus its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel,
    questions: Sequence[Question],
    tokens_at_once: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[list[float]]:
    """For each question, the log-likelihood of each answer in nats, summed over its tokens including EOS.

    `tokens_at_once` limits memory (each answer counts with its prompt); `progress` is called with the number of
    questions finished. Questions of similar length share a batch, which limits padding; results keep the input order.
    """
    read = _encoder_decoder_logprobs if model.config.is_encoder_decoder else _decoder_logprobs
    results: list[list[float]] = [[] for _ in questions]
    for batch in like_length_batches(questions, tokens_at_once):
        part = [questions[i] for i in batch]
        sums = iter(read(model, part).tolist())
        for i, question in zip(batch, part, strict=True):
            results[i] = [next(sums) for _ in question.answers]
        progress(len(batch))
    return results


def like_length_batches(questions: Sequence[Question], tokens_at_once: int) -> Iterator[list[int]]:
    """Yield batches of question indices, longest prompts first, so that running out of memory happens early."""
    order = sorted(range(len(questions)), key=lambda i: (-len(questions[i].prompt), i))
    batch: list[int] = []
    width = n_answers = 0
    for i in order:
        question = questions[i]
        width, n_answers = max(width, question.width), n_answers + len(question.answers)
        if batch and width * n_answers > tokens_at_once:
            yield batch
            batch, width, n_answers = [], question.width, len(question.answers)
        batch.append(i)
    if batch:
        yield batch


def _rows_of(questions: Sequence[Question], device: torch.device) -> Tensor:
    """(answers,) index of the question that each answer belongs to."""
    counts = torch.tensor([len(question.answers) for question in questions])
    return torch.arange(len(questions)).repeat_interleave(counts).to(device)


def _decoder_logprobs(model: PreTrainedModel, questions: Sequence[Question]) -> Tensor:
    """(answers,) log-likelihoods in nats of all answers, question after question."""
    device = model.device
    if not reading_of(
        model, max(question.width for question in questions)
    ).prefix:  # the prompt is read again for each answer
        asked = [(question.prompt, answer) for question in questions for answer in question.answers]
        rollout = as_rollout([prompt for prompt, _ in asked], [answer for _, answer in asked], 0, device)
        return response_logprobs(model, rollout, temperature=1.0).logprobs.sum(1)
    prompts = Padded(*(part.to(device) for part in pad([q.prompt for q in questions], 0, "left")))
    answers = Padded(*(part.to(device) for part in pad([a for q in questions for a in q.answers], 0, "right")))
    hidden = states_after_prompts(model, prompts, answers, _rows_of(questions, device))
    found = token_logprobs_from_hidden(hidden[answers.mask], output_head(model), answers.ids[answers.mask])
    return unflatten(found.logprobs, answers.mask).sum(1)


def _encoder_decoder_logprobs(model: PreTrainedModel, questions: Sequence[Question]) -> Tensor:
    """(answers,) log-likelihoods in nats of all answers, question after question."""
    device = model.device
    rows = _rows_of(questions, device)
    prompts = pad([question.prompt for question in questions], model.config.pad_token_id, "right")
    prompt_mask = prompts.mask.long().to(device)
    states = model.get_encoder()(input_ids=prompts.ids.to(device), attention_mask=prompt_mask).last_hidden_state
    # `rows` selects the encoder states of each answer; the collated prompts only set the batch size.
    batch = collate_pairs(model, [[0]] * len(rows), [answer for question in questions for answer in question.answers])
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states[rows]),
        attention_mask=prompt_mask[rows],
        decoder_input_ids=batch.decoder_inputs.to(device),
        use_cache=False,
    ).logits
    return answer_token_logprobs(logits, batch.answers.to(device)).sum(1)
