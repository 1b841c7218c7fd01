"""Writes the README.md of a published reward model: how to encode text and how to read the score.

A score is reward_gain * logit + reward_bias. The head of causal architectures has no bias, and a final RMSNorm leaves
no constant for it to use, so the logit cannot include the bias. Both numbers are therefore in config.json, and the card
contains code that applies them. A test runs that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policy.encoding import adds_blank
from policy.special_tokens import stop_texts
from reward.classes import is_published
from reward.scalar_model import stored_normalisation

CARD_FILE = "README.md"
CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model]
---
# Reward model

A {architecture} with one label, trained with InstructGPT's ranking loss on comparisons by people or a judge. A higher
score means that an answer is more likely to be preferred to another answer **to the same prompt**: P(a beats b) =
sigmoid(logit(a) - logit(b)). Scores for different prompts are comparable only as far as the training data allow.

## Reading a score

- **Text.** Render the conversation with `chat_template.jinja`. It ends with the assistant's answer and its stop token:
  {stops}. That token is part of the answer; without it you get the score of an unfinished answer.
- **Tokens.** Tokenize the text before an answer and the answer with its stop token separately, without adding special
  tokens, and concatenate the ids. If you tokenize them as one text, characters can merge across the boundary into
  tokens that the model has not seen there.
- **Position.** The score is read at the last real token, which is that stop token. The padding token is `{pad}` (id
  {pad_id}). Pad on either side; the score does not change if the attention mask marks the padding.
- **Scale.** `logits[0, 0]` is the raw score. The score that training, evaluation and PPO report is
  `reward_gain * logit + reward_bias`, with `reward_gain` {gain:.10g} and `reward_bias` {bias:.10g} from `config.json`.
  {scale}

```python
import torch
{classes}

directory = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(directory)
model = {opened}.eval()


{tokens}


def logit(messages, model=model):
    \"\"\"messages: [{{"role": "user", "content": ..}}, {{"role": "assistant", "content": ..}}], the answer last.\"\"\"
    ids, done = [], ""
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
            answer = whole[len(before) :]
            stops = [stop for stop in {stop_texts!r} if stop in answer] or [tokenizer.eos_token]
            stop = min(stops, key=answer.find)  # the first one ends the answer
            answer = answer.partition(stop)[0] + stop
            ids += tokens(done, before[len(done) :]) + tokens(before, answer)
            done = before + answer
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def score(messages):
    return model.config.reward_gain * logit(messages) + model.config.reward_bias
```

If triptych is installed, `triptych score DIRECTORY FILE` does the same for the rows of a file (with their mean if the
checkpoint contains several models, see below). `triptych judge` measures on your own comparisons how far to trust it.
{numbers}"""
# How the model is opened: with transformers, or with triptych where transformers has no class for the architecture.
OPENED = (
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
    "AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)",
)
OPENED_HERE = (
    "from transformers import AutoTokenizer\n\nfrom reward.scalar_model import load_scalar_model  # install triptych",
    'load_scalar_model(directory, torch.device("cpu"))',
)
TOKENS = """def tokens(before, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]"""
TOKENS_WITHOUT_BLANK = """def tokens(before, text):
    \"\"\"The ids of `text` after `before`, without the blank that this tokenizer writes in front of every text.\"\"\"
    added = [token for token in tokenizer.get_added_vocab() if before.endswith(token)]
    start = "" if not before else added[0] if added else "\\n"
    first, whole = tokenizer([start, start + text], add_special_tokens=False)["input_ids"]
    if whole[: len(first)] == first:
        return whole[len(first) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]"""
SCALES = {
    "demonstrations": "On this scale the demonstrations score 0 on average.",
    "policy_samples": "On this scale the SFT model's own answers have mean 0 and standard deviation 1.",
}


def write_reward_card(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    normalise_on: str,
    judged: Mapping[str, Any],
    more: str = "",
) -> None:
    """Write the card into the checkpoint. `judged`: the stage's metrics on held-out pairs; `more`: text to append."""
    normalisation = stored_normalisation(model)
    stops = stop_texts(tokenizer)
    classes, opened = OPENED if is_published(model.config) else OPENED_HERE
    card = CARD.format(
        classes=classes,
        opened=opened,
        architecture=type(model).__name__,
        stops=" or ".join(f"`{stop}` (id {tokenizer.convert_tokens_to_ids(stop)})" for stop in stops),
        stop_texts=stops,
        tokens=TOKENS_WITHOUT_BLANK if adds_blank(tokenizer) else TOKENS,
        pad=tokenizer.pad_token,
        pad_id=tokenizer.pad_token_id,
        gain=normalisation.gain,
        bias=normalisation.bias,
        scale=SCALES[normalise_on],
        numbers=_numbers(judged),
    )
    (directory / CARD_FILE).write_text(card + more, encoding="utf-8")


def _numbers(judged: Mapping[str, Any]) -> str:
    if judged.get("pair_accuracy") is None:
        return "\nNo comparisons were held out, so the accuracy was not measured.\n"
    return (
        f"\n## Accuracy\n\nOn {judged['n']} held-out pairs the model prefers the better answer in "
        f"{judged['pair_accuracy']:.1%} (95 % interval {judged['pair_accuracy_low']:.1%} to "
        f"{judged['pair_accuracy_high']:.1%}). Always preferring the longer answer is right in "
        f"{judged['longer_wins_accuracy']:.1%}.\n"
    )
