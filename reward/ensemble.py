"""Several reward models over one backbone: each further member consists of low-rank factors and its own head.

A member scores like a separate whole model; only weights that no member changed are shared. On disk the first member is
the checkpoint itself, a whole model that AutoModelForSequenceClassification opens. Every other member is a PEFT adapter
relative to it, in `ensemble/`. Where members disagree, PPO has left the distribution that they were trained on (Coste
et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from policy.errors import ModelError
from policy.sampling.rollout import Rollout
from reward.normalisation import RewardNormalisation
from reward.scalar_model import response_scores, scalar_head
from reward.scoring import score_responses
from reward.sources import Scored

FOLDER, INDEX = "ensemble", "ensemble.json"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
PREFIX = "base_model.model."  # of PEFT's names for a model's layers
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class Factors(NamedTuple):
    """A change of a linear layer's weight: up @ down."""

    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank), multiplied by the adapter's scale


class Member(NamedTuple):
    """A reward model as its difference from the first member."""

    layers: dict[str, Factors]  # by name of the linear layer
    head: Tensor  # (1, hidden)
    normalisation: RewardNormalisation

    @property
    def size(self) -> int:
        """Number of values that this member adds to memory."""
        return self.head.numel() + sum(part.numel() for factors in self.layers.values() for part in factors)


def relative_to(member: Member, first: Member) -> Member:
    """The member relative to the first, if both are given relative to one backbone; its rank is twice theirs."""
    layers = {
        name: Factors(torch.cat([own.down, first.layers[name].down]), torch.cat([own.up, -first.layers[name].up], 1))
        for name, own in member.layers.items()
    }
    return member._replace(layers=layers)


@contextmanager
def acting_as(model: PreTrainedModel, member: Member) -> Iterator[None]:
    """Context in which the first member's model computes as this member, except for the normalisation in its config."""
    head = scalar_head(model)
    handles = [head.register_forward_hook(lambda _, inputs, __: linear(inputs[0], member.head))]
    for name, factors in member.layers.items():
        layer = model.get_submodule(name)
        layer = getattr(layer, "base_layer", layer)  # under the adapters of PPO's value model, which are off
        handles.append(layer.register_forward_hook(_adding(factors)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(factors: Factors) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + linear(linear(inputs[0], factors.down), factors.up)

    return hook


@torch.no_grad()
def member_scores(model: PreTrainedModel, members: Sequence[Member], rollout: Rollout) -> Tensor:
    """(1 + members, batch) normalised scores of each member, beginning with the first."""
    return _of_each(model, members, partial(response_scores, model, rollout))


def ensemble_scores(
    model: PreTrainedModel,
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    *,
    batch_size: int = 32,
) -> Tensor:
    """(n,) float32 normalised scores on the CPU: the mean over the model and the ensemble's further members."""
    score = partial(score_responses, model, prompts, responses, pad_id, batch_size=batch_size)
    return _of_each(model, members, score).mean(0)


def _of_each(model: PreTrainedModel, members: Sequence[Member], score: Callable[..., Tensor]) -> Tensor:
    """(1 + members, n) results of `score(normalised=...)` for the model acting as each member, on its scale."""
    scores = [score(normalised=True)]
    for member in members:
        with acting_as(model, member):
            scores.append(member.normalisation(score(normalised=False)))
    return torch.stack(scores)


def combine(scores: Tensor, how: Literal["mean", "minimum", "penalised"], disagreement_coef: float = 1.0) -> Scored:
    """(members, batch) -> one score per answer, and the `disagreement`: the members' population standard deviation.

    "penalised" is mean - disagreement_coef * disagreement."""
    disagreement = scores.std(0, correction=0)
    mean = scores.mean(0)
    chosen = {"mean": mean, "minimum": scores.amin(0), "penalised": mean - disagreement_coef * disagreement}[how]
    return Scored(chosen, {"disagreement": disagreement})


def write_members(
    directory: Path, model: PreTrainedModel, members: Sequence[Member], settings: Mapping[str, Any]
) -> None:
    """Write the further members into the first one's checkpoint. `settings` are PEFT's, for adapters whose factors
    already contain the scale."""
    for number, member in enumerate(members, start=1):
        folder = directory / FOLDER / f"member_{number}"
        folder.mkdir(parents=True)
        tensors = {_head_name(model): member.head}
        for name, (down, up) in member.layers.items():
            tensors |= {f"{PREFIX}{name}{DOWN}": down, f"{PREFIX}{name}{UP}": up}
        rank = next(iter(member.layers.values())).down.shape[0]
        save_file({name: part.detach().cpu().contiguous() for name, part in tensors.items()}, folder / WEIGHTS)
        written = {**settings, "r": rank, "lora_alpha": rank}  # a scale of 1
        (folder / SETTINGS).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    normalisations = [{"gain": m.normalisation.gain, "bias": m.normalisation.bias} for m in members]
    (directory / FOLDER / INDEX).write_text(json.dumps({"members": normalisations}, indent=2) + "\n")


def has_members(directory: Path) -> bool:
    """Whether a reward model's checkpoint is an ensemble."""
    return (directory / FOLDER / INDEX).is_file()


def read_members(directory: Path, model: PreTrainedModel) -> list[Member]:
    """Read the further members of a published ensemble, on the model's device; [] for a checkpoint of one reward model.
    Raises ModelError if files are missing or damaged."""
    index = directory / FOLDER / INDEX
    if not index.is_file():
        return []
    members = []
    try:
        for number, told in enumerate(json.loads(index.read_text())["members"], start=1):
            folder = directory / FOLDER / f"member_{number}"
            state = load_file(folder / WEIGHTS, device=str(model.device))
            settings = json.loads((folder / SETTINGS).read_text())
            scale = settings["lora_alpha"] / settings["r"]
            members.append(member_state(state, scale, model, RewardNormalisation(told["gain"], told["bias"])))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"the ensemble in '{directory}' cannot be read ({type(error).__name__}: {error}); copy the checkpoint "
            "again."
        ) from error
    return members


def member_state(
    state: Mapping[str, Tensor], scale: float, model: PreTrainedModel, normalisation: RewardNormalisation
) -> Member:
    """Build a member from the state dict of its adapter and head, with PEFT's names."""
    names = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in state if name.endswith(DOWN)]
    layers = {
        name: Factors(state[f"{PREFIX}{name}{DOWN}"].detach().clone(), scale * state[f"{PREFIX}{name}{UP}"].detach())
        for name in names
    }
    return Member(layers, state[_head_name(model)].detach().clone(), normalisation)


def _head_name(model: PreTrainedModel) -> str:
    return f"{PREFIX}{'score' if hasattr(model, 'score') else 'classifier'}.weight"
