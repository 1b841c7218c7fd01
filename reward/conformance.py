"""What triptych found out about a model before any stage trains it: how it is read, what is refused, and why.

The trials are those that every stage relies on (policy/reading/ways.py, reward/shared_prompt.py). They need only the
config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from policy.errors import ModelError
from policy.language_model import check_decoder_only, load_config, load_tokenizer, load_weights, positions
from policy.reading.body import call, states
from policy.reading.freezing import can_be_parted
from policy.reading.trials import ANY, EXACT, Reading
from policy.reading.ways import FAST, longest_answer, reach_of, readings_of_config
from policy.sampling.rollout import output_head
from policy.special_tokens import check_special_tokens, hide_ids_without_token, stop_ids, vocabulary_size
from reward.classes import is_published, scalar_class
from reward.scalar_model import load_scalar_model
from reward.shared_prompt import longest_shared


class Fact(NamedTuple):
    """One row of the table of `triptych check`."""

    about: str
    found: str
    state: str = "exact"  # "exact", "slower" (exact, in a slower way), "set" (a setting is needed), "refused"


ESSENTIAL = ("answers end with", "padding", "weights", "logits of a text")  # without these no stage can use a model
WAYS = {
    "own forward": "by the model's own forward pass, since they are not its output embedding times its states",
    "head": "output embedding times the last states",
    "packed": "several in a row, without padding",
    "padded": "one in a row, padded",
    "equal": "only texts of equal length together",
    "single": "one at a time",
    "padded cache": "prompts of any length together, each token from the cache",
    "equal cache": "prompts of equal length together, each token from the cache",
    "none cache": "every token reads its whole text again",
    "refused cache": "not possible",
    "refused": "not possible",
}


def model_facts(source: str, pad_token: str | None, with_weights: bool) -> list[Fact]:
    """All facts about the model in a directory or on the hub. Raises ModelError if it is not a decoder-only model or
    cannot be read exactly."""
    check_decoder_only(source)
    config, tokenizer = load_config(source), load_tokenizer(source)
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    kind = (config.architectures or [type(config).__name__])[0]
    stored = str(config.dtype or "float32").removeprefix("torch.")
    facts = [Fact("architecture", f"{kind} ({config.model_type})")]
    facts.append(Fact("precision", f"stored in {stored}, computed in float32 unless a setting says otherwise"))
    facts += architecture_facts(config) + token_facts(config, tokenizer, source)
    if not with_weights:
        return facts
    if "ForSequenceClassification" in kind:
        return facts + weight_facts(load_scalar_model(source, torch.device("cpu")))
    model = load_weights(AutoModelForCausalLM, source).eval()
    hide_ids_without_token(model, tokenizer)
    text = tokenizer("A text of a few words, to compare its logits with.", add_special_tokens=False)["input_ids"]
    return facts + weight_facts(model, text)


def refused(facts: Sequence[Fact]) -> str | None:
    """Why no stage can use the model, if one of the facts says so."""
    found = (fact for fact in facts if fact.state == "refused" and fact.about in ESSENTIAL)
    return next((f"{fact.about}: {fact.found}" for fact in found), None)


def architecture_facts(config: PreTrainedConfig) -> list[Fact]:
    """How a model with this config is read, one fact for each assumption that was tried. Raises ModelError if no way is
    exact, so that the model cannot be used."""
    readings = readings_of_config(config)
    if readings is None:
        return [
            Fact("trials", "transformers cannot build a tiny copy; the trials are made on the model itself", "slower")
        ]
    within, beyond = readings
    reach = reach_of(config)
    facts = [
        Fact("attention", "causal"),
        Fact("logits", WAYS[beyond.logits], "exact" if beyond.logits == FAST.logits else "slower"),
        *_by_reach("texts in a batch", within.rows, beyond.rows, FAST.rows, reach),
        *_by_reach("sampling", f"{within.cache} cache", f"{beyond.cache} cache", f"{FAST.cache} cache", reach),
        Fact("several answers to a prompt", *_answers(beyond)),
    ]
    shared = longest_shared(config)
    how = {ANY: "prompts are read once for all their answers", 0: "prompts are read again for each answer"}
    limited = f"prompts are read once for all their answers if no text has more than {shared} tokens"
    facts.append(Fact("reward model's prompts", how.get(shared, limited), "exact" if shared == ANY else "slower"))
    facts += [_reward_class(config), _in_two_parts(config)]
    limit, answers = positions(config), longest_answer(config)
    stated = "no limit stated" if limit == ANY else f"{limit} tokens"
    facts.append(
        Fact("positions", stated if answers >= limit else f"{stated}; {answers} for prompt and answer together")
    )
    return facts


def _reward_class(config: PreTrainedConfig) -> Fact:
    try:
        name = scalar_class(config).__name__
    except ModelError as error:
        return Fact("reward model's class", str(error), "refused")
    own = "triptych's own scalar head on its body, since transformers has no class for it (open it with triptych)"
    return Fact("reward model's class", name if is_published(config) else f"{name}: {own}")


def _in_two_parts(config: PreTrainedConfig) -> Fact:
    """Whether upper layers can be trained above a frozen trunk; a refusal concerns `trainable_layers` alone."""
    if can_be_parted(config, torch.device("cpu")):
        return Fact("frozen trunk", "upper layers go on from the states of the lower ones (trainable_layers)")
    why = "upper layers do not give the same numbers from the states of the lower ones: leave trainable_layers out"
    return Fact("frozen trunk", why, "refused")


def _by_reach(about: str, within: str, beyond: str, fast: str, reach: int) -> list[Fact]:
    """A fact about texts of any length, or two of them where long texts are read in another way."""
    state = "refused" if beyond.startswith("refused") else "exact" if beyond == fast else "slower"
    if within == beyond:
        return [Fact(about, WAYS[beyond], state)]
    return [
        Fact(f"{about}, up to {reach} tokens", WAYS[within], "exact" if within == fast else "slower"),
        Fact(f"{about}, longer ones", WAYS[beyond], state),
    ]


def _answers(reading: Reading) -> tuple[str, str]:
    if reading.prefix:
        return "the prompt is read once for all of them", "exact"
    return "the prompt is read again for each of them when answers are compared", "slower"


def token_facts(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, source: str) -> list[Fact]:
    """Special tokens, stop tokens and vocabulary of a model's tokenizer against its config."""
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in stop_ids(tokenizer)]
    facts = [Fact("answers end with", " or ".join(stops) or "no token", "exact" if stops else "refused")]
    try:
        check_special_tokens(tokenizer, source)
        facts.append(Fact("padding", f"{tokenizer.pad_token}, which is not EOS"))
    except ModelError as error:
        facts.append(Fact("padding", str(error), "set" if stops else "refused"))
    rows, size = config.get_text_config().vocab_size, vocabulary_size(tokenizer)
    unused = len(set(range(rows)).difference(tokenizer.get_vocab().values()))
    said = f"{rows} rows for {len(tokenizer)} tokens"
    if size > rows:
        facts.append(Fact("vocabulary", f"{said}: rows are added for the missing ones", "exact"))
    else:
        facts.append(Fact("vocabulary", f"{said}; {unused} rows without a token are never sampled" if unused else said))
    template = "none; set sft.template" if tokenizer.chat_template is None else "its own"
    facts.append(Fact("chat template", template, "set" if tokenizer.chat_template is None else "exact"))
    return facts


@torch.no_grad()
def weight_facts(model: PreTrainedModel, ids: Sequence[int] = ()) -> list[Fact]:
    """The loaded weights: whether they are finite and, for a language model, whether the logits of a text (ids) as
    triptych computes them are those of the model's own forward pass."""
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        return [Fact("weights", f"{len(bad)} tensors have values that are not finite, such as {bad[0]}", "refused")]
    facts = [Fact("weights", f"{sum(weight.numel() for weight in model.parameters()):,} parameters, all finite")]
    if not ids:
        return facts
    text = torch.tensor([list(ids)], device=model.device)
    head = output_head(model)
    hidden = states(model, text)[0]
    found = hidden @ head.T if isinstance(head, Tensor) else head(hidden)
    own = call(model, text, use_cache=False).logits[0, :, : found.shape[1]]
    real = found.isfinite()
    error = float(((found - own)[real].abs().max() / own[real].abs().max()).item())
    same = "exact" if error <= EXACT else "refused"
    return [*facts, Fact("logits of a text", f"differ by {error:.1e} of the largest from the model's own", same)]
