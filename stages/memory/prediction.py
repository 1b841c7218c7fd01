"""What PPO will need, predicted from a model's config.json before anything is loaded: memory by role and by phase.

The passes that PPO makes are run on fake tensors of the recipe's largest shapes (every prompt as long as allowed, no
answer ends early), by the functions that PPO itself uses. So adapters, gradient checkpointing, chunks of logits and
whatever else a layer keeps are counted as they will be; in float32, with the CPU's attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from policy.checkpointing import checkpointed
from policy.language_model import add_lora, load_config
from policy.logprobs import token_logprobs_from_hidden
from policy.rollout import output_head
from reward.scalar_model import scalar_head
from stages.memory.live import LiveMemory
from stages.memory.out_of_memory import micro_batch
from stages.ppo_settings import PpoConfig
from stages.settings import LoraConfig

CHUNK = 1024  # rows of logits that token_logprobs_from_hidden holds at once


@dataclass(frozen=True)
class RoleMemory:
    """Bytes that are there from an iteration to the next; gradients, from a backward pass to its optimiser step."""

    name: str
    weights: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class Phase:
    """One part of an iteration. What it holds at most beside weights and optimiser states; what it does in all."""

    name: str
    working: int  # bytes, gradients that are there by then included
    flops: float
    made: float  # bytes of all tensors it makes
    operations: float
    rows: int  # of its matrix products


@dataclass(frozen=True)
class MemoryPlan:
    roles: tuple[RoleMemory, ...]
    phases: tuple[Phase, ...]
    kv_cache: int  # bytes, part of sampling
    logits: int  # bytes of one tensor of a chunk of logits in the update

    @property
    def held(self) -> int:
        """Bytes between the phases: weights and optimiser states."""
        return sum(role.weights + role.optimizer for role in self.roles)

    @property
    def peak(self) -> int:
        """The most bytes of tensors at any time."""
        return self.held + max(phase.working for phase in self.phases)


class Models:
    """Policy and value model, adapters included, as shapes on the meta device; `imagine` makes fake tensors of them."""

    def __init__(self, config: PreTrainedConfig, lora: LoraConfig | None) -> None:
        with torch.device("meta"):
            self.policy: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
            config.num_labels = 1
            self.value: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
        self.bare_policy, self.bare_value = size(self.policy), size(self.value)
        if lora is not None:
            self.policy, self.value = (
                add_lora(model, lora.rank, lora.alpha, lora.targets, task).get_base_model()
                for model, task in ((self.policy, "CAUSAL_LM"), (self.value, "SEQ_CLS"))
            )

    def imagine(self) -> list[Tensor]:
        """Within FakeTensorMode: put a fake tensor in place of every weight; returns them."""
        made: dict[int, Tensor] = {}  # tied weights stay tied
        for module in (*self.policy.modules(), *self.value.modules()):
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                    module._parameters[name] = made.setdefault(id(weight), fake)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    fake_buffer = torch.empty(buffer.shape, dtype=buffer.dtype)
                    module._buffers[name] = made.setdefault(id(buffer), fake_buffer)
        return list(made.values())


def size(model: nn.Module, trained: bool = False) -> int:
    """Bytes of a model's weights, or of those that are trained."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad or not trained)


def predict(config: PpoConfig, model: Path | str, prompt_length: int, with_reward_model: bool = True) -> MemoryPlan:
    """The plan of one PPO iteration with this model in every role and prompts of so many tokens."""
    models = Models(load_config(model), config.lora)
    roles = role_memory(models, config, with_reward_model)
    with FakeTensorMode():
        meter = Meter(models.imagine())
        kv_cache = sample(meter, models.policy, config, prompt_length)
        read(meter, models, config, prompt_length)
        update(meter, models, config, prompt_length)
    rows_of_logits = min(CHUNK, micro_batch(config) * config.sampling.max_new_tokens)
    logits = 4 * rows_of_logits * models.policy.config.vocab_size
    return MemoryPlan(roles, tuple(meter.phases.values()), kv_cache, logits)


def role_memory(models: Models, config: PpoConfig, with_reward_model: bool) -> tuple[RoleMemory, ...]:
    """Adam keeps two numbers for each that is trained. An average of the weights (`ema_decay`) counts as optimiser."""
    policy, value = size(models.policy, trained=True), size(models.value, trained=True)
    # A weight that several roles share is counted where it is listed first; a reward adapter is as large as the value
    # model's.
    own = size(models.value) - models.bare_value
    reference = models.bare_policy if config.lora is None else 0
    value_weights = own if config.shared_backbone else size(models.value)
    reward = models.bare_value if config.lora is None else own if config.shared_backbone else 0
    averages = policy if config.ema_decay else 0
    return (
        RoleMemory("policy", size(models.policy), policy, 2 * policy + averages),
        RoleMemory("reference", reference, 0, 0),
        RoleMemory("value", value_weights, value, 2 * value),
        RoleMemory("reward", reward if with_reward_model else 0, 0, 0),
    )


class Meter:
    """Runs parts of an iteration on fake tensors and adds up what they need, by phase."""

    def __init__(self, known: list[Tensor]) -> None:
        self.live = LiveMemory(known)
        self.phases: dict[str, Phase] = {}

    def run(self, name: str, times: float, rows: int, work: Callable[[], Any]) -> Any:
        """Do the work once and count it `times`; what it returns stays alive."""
        live, before = self.live, self.phases.get(name, Phase(name, 0, 0, 0, 0, rows))
        live.restart_peak()
        made, operations = live.made, live.operations
        with FlopCounterMode(display=False) as flops, live:
            result = work()
        self.phases[name] = Phase(
            name,
            max(before.working, live.peak),
            before.flops + times * flops.get_total_flops(),
            before.made + times * (live.made - made),
            before.operations + times * (live.operations - operations),
            rows,
        )
        return result


def sample(meter: Meter, model: PreTrainedModel, config: PpoConfig, prompt: int) -> int:
    """The rollout, every answer drawn to its full length; returns the bytes of the full cache."""
    rows, length = min(config.sampling.batch_size, config.rollout_batch), max(2, config.sampling.max_new_tokens)
    batches = config.rollout_batch / rows

    def extend(cache: DynamicCache, tokens: int) -> DynamicCache:
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        drawn_from = (logits.float() / 0.9).softmax(-1)
        torch.empty_like(drawn_from)  # multinomial's own draws
        return cache

    with torch.no_grad():
        meter.run("sampling", batches, rows, lambda: extend(DynamicCache(config=model.config), prompt))
        cache = DynamicCache(config=model.config)
        with meter.live:  # what no phase does: fill the cache at once, but for the last token that is read
            extend(cache, prompt + length - 2)
        meter.run("sampling", batches * (length - 1), rows, lambda: extend(cache, 1))
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def policy_pass(model: PreTrainedModel, rows: int, prompt: int, response: int) -> Tensor:
    """As policy.rollout.response_logprobs, of rows that are all of the same length."""
    ids = torch.zeros(rows, prompt + response, dtype=torch.long)
    hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state[:, prompt - 1 : -1].flatten(0, 1)
    return token_logprobs_from_hidden(hidden, output_head(model), ids[:, prompt:].flatten()).logprobs


def value_pass(model: PreTrainedModel, rows: int, prompt: int, response: int) -> Tensor:
    """As reward.scalar_model.response_values."""
    ids = torch.zeros(rows, prompt + response, dtype=torch.long)
    hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state[:, prompt - 1 : -1].flatten(0, 1)
    scalars: Tensor = scalar_head(model)(hidden)
    return scalars


def body(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule(model.base_model_prefix)


def read(meter: Meter, models: Models, config: PpoConfig, prompt: int) -> None:
    """Policy, reference, value and reward model on the rollout, without gradients."""
    rows = min(config.sampling.batch_size, config.rollout_batch)
    times, response = 2 * config.rollout_batch / rows, config.sampling.max_new_tokens
    tokens = rows * (prompt + response)
    with torch.no_grad():
        meter.run("reading", times, tokens, lambda: policy_pass(models.policy, rows, prompt, response))
        meter.run("reading", times, tokens, lambda: value_pass(models.value, rows, prompt, response))


def update(meter: Meter, models: Models, config: PpoConfig, prompt: int) -> None:
    """An optimiser step's passes."""
    minibatch = config.rollout_batch // config.minibatches
    rows, response = micro_batch(config), config.sampling.max_new_tokens
    steps = config.inner_epochs * config.minibatches
    passes = -(-minibatch // rows)
    # The second pass finds the first one's gradients there; a third would find the same.
    runs = min(2, passes)
    with checkpointed(config.gradient_checkpointing, models.policy, models.value):
        for _ in range(runs):
            for name, model, forward in (
                ("update of the policy", models.policy, policy_pass),
                ("update of the value model", models.value, value_pass),
            ):
                times = steps * passes / runs

                def work(model: Any = model, forward: Any = forward) -> None:
                    forward(model, rows, prompt, response).sum().backward()

                meter.run(name, times, rows * (prompt + response), work)
        if config.pretraining_coef > 0:

            def text() -> None:
                policy_pass(models.policy, config.pretraining_rows, 1, config.pretraining_length - 1).sum().backward()

            tokens = config.pretraining_rows * config.pretraining_length
            meter.run("update on pretraining text", steps, tokens, text)
    for model in (models.policy, models.value):
        model.zero_grad()
