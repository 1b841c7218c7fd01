"""The forward and backward passes of one PPO iteration, with a recipe's largest shapes: every prompt has the maximal
length, and no answer ends early.

A Meter decides how they are measured: on fake tensors for memory (prediction.py), on real ones for time (timing.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from policy.adapters import add_lora
from policy.maths.logprobs import token_logprobs_from_hidden
from policy.memory.checkpointing import checkpointed
from policy.memory.shared_weights import copy_trained
from policy.reading.body import call, states
from policy.reading.trunk import Part, states_of_part
from policy.sampling.generate import draw
from policy.sampling.rollout import output_head
from reward.adapter import scalar_model_over
from reward.classes import scalar_class
from reward.frozen_layers import cut_config
from reward.scalar_model import scalar_head
from stages.ppo.out_of_memory import micro_batch
from stages.ppo.settings import PpoConfig
from stages.reward_model.settings import RewardModelConfig
from stages.settings import OptimizerConfig
from workbench.plan.trunk import WHOLE, freeze, own_bytes, shape_of_trunk


class Meter(Protocol):
    def run(self, name: str, times: float, work: Callable[[], Any]) -> Any:
        """Do `work`, which an iteration does `times` times; add its cost to the phase `name`."""
        ...

    def prepare(self, work: Callable[[], Any]) -> None:
        """Do `work` without measuring it, since it is not part of an iteration."""
        ...


class Models:
    """Policy and value model with random weights, adapters included. On the "meta" device they have only shapes.

    `reward` is the recipe's reward model, from which the value model starts; None: the rewards are code. With a trunk
    it is a model of its own, and otherwise of the value model's shape."""

    def __init__(
        self, config: PreTrainedConfig, ppo: PpoConfig, device: torch.device, reward: RewardModelConfig | None = WHOLE
    ) -> None:
        config.num_labels, config.pad_token_id = 1, 0
        of_reward = copy.deepcopy(config)
        if reward is not None and reward.frozen_layers:
            cut_config(of_reward, reward.frozen_layers)
        with device:
            self.policy: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
        self.trunk = shape_of_trunk(self.policy, ppo, reward)
        of_value = of_reward if self.trunk is None else copy.deepcopy(config)
        with device:
            if (ppo.shared_backbone or self.trunk) and device.type != "meta":
                self.value: PreTrainedModel = scalar_model_over(self.policy, of_value)
            else:
                self.value = scalar_class(of_value)._from_config(of_value).eval()
            self.reward = None if reward is None else self.value
            if self.reward is not None and self.trunk is not None:
                self.reward = scalar_class(of_reward)._from_config(of_reward).eval().requires_grad_(False)
        self.bare_policy, self.bare_value = size(self.policy), size(self.value)
        above: list[Any] = [None, None]
        if self.trunk is not None:
            above = [freeze(model, self.trunk.depth) for model in (self.policy, self.value)]
            self.own_value = own_bytes(self.value, self.trunk.depth)
            if ppo.lora is None and device.type != "meta":
                self.value = copy_trained(self.value)
        self._adapters: tuple[Any, ...] = ()
        if ppo.lora is not None:
            self._adapters = tuple(
                add_lora(model, ppo.lora.rank, ppo.lora.alpha, ppo.lora.targets, task, within=within)
                for model, task, within in zip((self.policy, self.value), ("CAUSAL_LM", "SEQ_CLS"), above, strict=True)
            )

    def all(self) -> list[PreTrainedModel]:
        """Each model once."""
        return [self.policy, self.value, *([self.reward] if self.reward not in (None, self.value) else [])]

    @property
    def depth(self) -> int:
        """Frozen layers that are read once for all models; 0 without a trunk."""
        return 0 if self.trunk is None else self.trunk.depth

    def as_reference(self) -> AbstractContextManager[Any]:
        """Return a context in which `policy` computes as the reference model: without adapters."""
        return self._adapters[0].disable_adapter() if self._adapters else nullcontext()


def size(model: nn.Module, trained: bool = False) -> int:
    """Return the bytes of a model's weights, or of the trained ones only."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad or not trained)


def sample(meter: Meter, model: PreTrainedModel, config: PpoConfig, prompt: int) -> int:
    """Sample the rollout with answers of full length; return the bytes of the full KV cache."""
    rows, length = min(config.sampling.batch_size, config.rollout_batch), max(2, config.sampling.max_new_tokens)
    batches = config.rollout_batch / rows

    def extend(cache: DynamicCache, tokens: int) -> DynamicCache:
        ids = torch.zeros(rows, tokens, dtype=torch.long, device=model.device)
        logits = call(model, ids, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        draw((logits.float() / 0.9).softmax(-1), None)
        return cache

    with torch.no_grad():
        meter.run("sampling", batches, lambda: extend(DynamicCache(config=model.config), prompt))
        cache = DynamicCache(config=model.config)
        meter.prepare(lambda: extend(cache, prompt + length - 2))  # all but the last token that the model reads
        meter.run("sampling", batches * (length - 1), lambda: extend(cache, 1))
    kept = [part for layer in cache.layers for part in tensors_of(vars(layer).values())]
    return sum(part.nbytes for part in kept)


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among these values: keys and values of attention, states of other layers (a mapping by number)."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors_of(value.values())


def policy_pass(model: PreTrainedModel, rows: int, prompt: int, response: int, first: int = 0) -> Tensor:
    """Compute as policy.sampling.rollout.response_logprobs does, for rows of equal length; from the states that enter
    layer `first`, if that is above 0."""
    ids = torch.zeros(rows, prompt + response, dtype=torch.long, device=model.device)
    hidden = states_from(model, ids, first)[:, prompt - 1 : -1].flatten(0, 1)
    return token_logprobs_from_hidden(hidden, output_head(model), ids[:, prompt:].flatten()).logprobs


def value_pass(model: PreTrainedModel, rows: int, prompt: int, response: int, first: int = 0) -> Tensor:
    """Compute as reward.scalar_model.response_values does, in the same way."""
    ids = torch.zeros(rows, prompt + response, dtype=torch.long, device=model.device)
    hidden = states_from(model, ids, first)[:, prompt - 1 : -1].flatten(0, 1)
    scalars: Tensor = scalar_head(model)(hidden)
    return scalars


def states_from(model: PreTrainedModel, ids: Tensor, first: int) -> Tensor:
    """(rows, tokens) ids -> (rows, tokens, hidden) states of the body, from kept states as in a pass of PPO."""
    if not first:
        return states(model, ids)
    taken = torch.zeros(*ids.shape, hidden_size(model), device=ids.device)
    return states_of_part(model, ids, Part(first, taken.clone()))  # laid into rows


def hidden_size(model: PreTrainedModel) -> int:
    found: int = model.config.get_text_config().hidden_size
    return found


def read(meter: Meter, models: Models, config: PpoConfig, prompt: int) -> None:
    """Run policy, reference, value and reward model on the rollout, without gradients."""
    rows, response = min(config.sampling.batch_size, config.rollout_batch), config.sampling.max_new_tokens
    batches = config.rollout_batch / rows
    shape, first = (rows, prompt, response), models.depth
    with torch.no_grad():
        if models.trunk is not None:
            meter.run("reading the trunk", batches, lambda: trunk_pass(models, rows, prompt + response))
        meter.run("reading", batches, lambda: policy_pass(models.policy, *shape, first))
        with models.as_reference():
            meter.run("reading", batches, lambda: policy_pass(models.policy, *shape, first))
        times = batches * (2 if models.reward is models.value else 1)
        meter.run("reading", times, lambda: value_pass(models.value, *shape, first))
        if models.trunk is not None and (reward := models.reward) is not None:
            alike = max(0, models.trunk.alike)
            meter.run("reading", batches, lambda: value_pass(reward, *shape, alike))


def trunk_pass(models: Models, rows: int, tokens: int) -> Tensor:
    """Compute as policy.sampling.rollout.read_below does, for rows of equal length."""
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=models.policy.device)
    found = states_of_part(models.policy, ids, Part(taps=models.trunk.kept if models.trunk else ()))
    return found.clone()


def update(
    meter: Meter,
    models: Models,
    config: PpoConfig,
    prompt: int,
    take_step: Callable[[str, PreTrainedModel, OptimizerConfig], None],
) -> None:
    """Run the passes of one optimiser step, one model after the other. `take_step` is called with each model's phase,
    the model with its complete gradient, and the optimiser settings; it clears the gradient."""
    minibatch = config.rollout_batch // config.minibatches
    rows, response = micro_batch(config), config.sampling.max_new_tokens
    steps = config.inner_epochs * config.minibatches
    passes = -(-minibatch // rows)
    # The first pass allocates gradients, the second adds to them; a third would cost the same as the second.
    runs = min(2, passes)
    with checkpointed(config.gradient_checkpointing, models.policy, models.value):
        for name, model, forward, settings in (
            ("update of the policy", models.policy, policy_pass, config.optimizer),
            ("update of the value model", models.value, value_pass, config.value_optimizer),
        ):
            for run in range(runs):

                def learn(first: bool = run == 0, model: Any = model, forward: Any = forward) -> None:
                    if first:
                        model.zero_grad()
                    forward(model, rows, prompt, response, models.depth).sum().backward()

                meter.run(name, steps * passes / runs, learn)
            if config.mixes_text and model is models.policy:

                def text() -> None:
                    length = config.pretraining_length
                    policy_pass(models.policy, config.pretraining_rows, 1, length - 1).sum().backward()

                meter.run("update on pretraining text", steps, text)
            take_step(name, model, settings)
