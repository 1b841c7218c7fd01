"""The class of a scalar model: the sequence classifier of an architecture, or one made here if it has none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from policy.errors import ModelError
from policy.kinds import check_all_is_used
from policy.reading.body import body_of, states
from policy.reading.twin import tiny_config, tiny_twin

HEAD = re.compile(r"^(score|classifier|v_head|value_head|reward_head|regression_layer)\b")  # names of weights


def is_published(config: PreTrainedConfig) -> bool:
    """Whether AutoModelForSequenceClassification knows this architecture."""
    return type(config) in AutoModelForSequenceClassification._model_mapping


def scalar_class(config: PreTrainedConfig) -> Any:
    """The class to build and load a scalar model with, tried once per architecture on a tiny copy. Raises ModelError if
    there is none whose scores are a linear head's at the last token."""
    kind = type(config)
    if kind not in _classes:
        with torch.device("cpu"):  # the caller may be building a model without tensors
            _classes[kind] = _tried(kind, config)
    if _classes[kind] is None:
        raise ModelError(
            f"no reward model can be built on a model of type {config.model_type}: its sequence classifier does not "
            "read a linear head at the last token; use another architecture (docs/models.md)."
        )
    return _classes[kind]


_classes: dict[type[PreTrainedConfig], Any] = {}


def _tried(kind: type[PreTrainedConfig], config: PreTrainedConfig) -> Any:
    """The class for this kind of config, or None if it does not score as it must."""
    if is_published(config):
        found: Any = AutoModelForSequenceClassification._model_mapping[kind]
        return found if _scores_by_its_head(found, config) else None
    found = _own_class(kind, config)
    return found if _loads_the_body(found, config) else None


def head_of_scalar(model: PreTrainedModel) -> torch.nn.Module | None:
    """The layer from hidden state to scalar, under the architecture's name for it."""
    found: torch.nn.Module | None = getattr(model, "score", None) or getattr(model, "classifier", None)
    return found


@torch.no_grad()
def _scores_by_its_head(kind: Any, config: PreTrainedConfig) -> bool:
    """Whether a published class's score of a text is its linear head's output at the last token."""
    if issubclass(kind, GenericForSequenceClassification):
        return True
    try:
        small = tiny_config(config)
        small.num_labels, small.pad_token_id = 1, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind._from_config(small).eval()
        head = head_of_scalar(model)
        if not isinstance(head, torch.nn.Linear):
            return False
        head.weight.copy_(torch.linspace(-1, 2, head.in_features)[None])
        ids = torch.arange(10, 20)[None]
        own, ours = model(input_ids=ids).logits[0, 0], head(states(model, ids)[0, -1])[0]
        return torch.allclose(own, ours, atol=1e-4)
    except Exception:  # what an architecture does not support fails in ways that cannot be listed
        return False


def load_scalar(source: str | Path, config: PreTrainedConfig, with_head: bool) -> PreTrainedModel:
    """Load a language model, or a published scalar model (`with_head`), as a scalar model with one label, in float32. A
    language model's head is not initialised in any useful way. Raises ModelError as `scalar_class` does, and if the
    checkpoint lacks weights or has others than the model."""
    kind = scalar_class(config)
    if is_published(config):
        config.num_labels = 1
        found, loading = kind.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        check_all_is_loaded(loading, source, with_head)
        model: PreTrainedModel = found
        return model
    return _load_own(kind, source, with_head, config)


def check_all_is_loaded(loading: Mapping[str, Any], source: str | Path, with_head: bool) -> None:
    """Raise ModelError if transformers drew weights of a scalar model at random, or left some of its head out."""
    unused = [name for name in sorted(loading["unexpected_keys"]) if HEAD.search(name)] if with_head else []
    missing = [name for name in sorted(loading["missing_keys"]) if with_head or not HEAD.search(name)]
    what = "reward model" if with_head else "language model"
    if missing:
        other = f", and has {unused[0]} in its place" if unused else ""
        raise ModelError(
            f"'{source}' lacks weights of a {what}: {', '.join(missing[:3])}{other}; give a {what} in the layout of "
            "transformers, with all of its weights."
        )
    if unused:
        raise ModelError(
            f"'{source}' has a head that its class in transformers does not read ({', '.join(unused[:3])}), so its "
            "scores would be others; give a reward model whose head is one layer without a bias."
        )
    check_all_is_used(loading["unexpected_keys"], source)


def _load_own(
    kind: Any, source: str | Path, with_head: bool, config: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """Weights of the body are loaded by the language model's class, which may rename them."""
    language_model, loading = AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    body = body_of(language_model)
    of_body = {id(weight) for weight in body.parameters()}
    missing = [
        name
        for name, weight in language_model.named_parameters()
        if name in loading["missing_keys"] and id(weight) in of_body  # the output embedding is not needed
    ]
    language_model.config.num_labels = 1
    with torch.device("meta"):
        model: PreTrainedModel = kind._from_config(language_model.config)
    setattr(model, kind.base_model_prefix, body)
    head = model.score.to_empty(device=language_model.device)
    torch.nn.init.zeros_(head.weight)
    heads = [found for file in sorted(Path(source).glob("*.safetensors")) for found in _heads_in(file)]
    if missing or (with_head and not heads):
        what = "reward model" if with_head else "language model"
        lacking = ", ".join(sorted(missing)[:3]) or "score.weight"
        raise ModelError(
            f"'{source}' lacks weights of a {what}: {lacking}; give the directory of a {what} with all of its weights."
        )
    if heads:
        with torch.no_grad():
            head.weight.copy_(heads[0])
    return model.eval()


def _heads_in(file: Path) -> Iterator[Tensor]:
    with safe_open(file, "pt") as tensors:
        if "score.weight" in tensors.keys():  # noqa: SIM118  # it is no mapping
            yield tensors.get_tensor("score.weight")


@torch.no_grad()
def _loads_the_body(kind: Any, config: PreTrainedConfig) -> bool:
    """Whether a class made here reads a saved language model as that does, and its own saved model as before."""
    ids = torch.arange(10, 20)[None]
    try:
        twin = tiny_twin(config)
        with TemporaryDirectory() as folder:
            twin.save_pretrained(f"{folder}/language_model")
            first = _load_own(kind, f"{folder}/language_model", with_head=False)
            first.score.weight.copy_(torch.linspace(-1, 2, first.score.in_features)[None])
            first.save_pretrained(f"{folder}/scalar_model")
            again = _load_own(kind, f"{folder}/scalar_model", with_head=True)
            score = first.score(states(twin, ids)[:, -1])
            return all(torch.allclose(each(input_ids=ids).logits, score, atol=1e-4) for each in (first, again))
    except Exception:  # as above
        return False


class LastTokenClassifier(GenericForSequenceClassification):
    """A linear head named `score` on any body; the caches that bodies return have many names and are not needed."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutputWithPast:
        """(batch, tokens) ids, padded on the right -> logits (batch, labels) at the last token of each text."""
        model: Any = self
        pad_id = getattr(model.config.get_text_config(), "pad_token_id", None)
        real = attention_mask
        if real is None:
            real = torch.ones_like(input_ids) if pad_id is None else input_ids != pad_id
        last = (real.long() * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1)
        hidden = states(model, input_ids, attention_mask=attention_mask)
        logits = model.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        return SequenceClassifierOutputWithPast(logits=logits)


def _own_class(kind: type[PreTrainedConfig], config: PreTrainedConfig) -> Any:
    """A class like those of transformers: the language model's body and a linear head named `score`."""
    try:
        language_model: Any = AutoModelForCausalLM._model_mapping[kind]
    except KeyError:
        raise ModelError(
            f"{kind.__name__} is not the config of a language model, so it cannot be a reward model; give one."
        ) from None
    family = next(each for each in language_model.__mro__ if _is_family(each))
    name = language_model.__name__.replace("ForCausalLM", "").replace("LMHeadModel", "")
    settings = {
        "base_model_prefix": _name_of_body(config, language_model),
        "config_class": kind,  # a family's own may be a config that contains this one
        "__module__": language_model.__module__,  # transformers reads its source to see what it supports
    }
    return type(f"{name}ForSequenceClassification", (LastTokenClassifier, family), settings)


def _is_family(kind: type) -> bool:
    """Whether this is an architecture's base class, which knows its config and how to initialise its layers."""
    return issubclass(kind, PreTrainedModel) and kind.__name__.endswith("PreTrainedModel")


def _name_of_body(config: PreTrainedConfig, language_model: Any) -> str:
    """The attribute that is the language model's body, so that its weights are found under their names."""
    try:
        twin = tiny_twin(config)
    except ValueError:
        prefix: str = language_model.base_model_prefix
        return prefix
    body = body_of(twin)
    return next(name for name, child in twin.named_children() if child is body)
