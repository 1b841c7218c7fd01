"""Files that PPO keeps for `triptych replay`: the inputs of each iteration's update, and snapshots of its state.

    RUN/rollouts/run.json             settings, parents, and what affects rounding (device, threads, libraries)
    RUN/rollouts/000012.safetensors   iteration 12: the inputs of its update, without padding, and its metrics per step
    RUN/snapshots/000010.safetensors  the trained weights and both optimisers after iteration 10

Iterations count from 1, as in metrics.jsonl.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from checkpoint_store.manifest import library_versions
from policy.errors import ModelError
from policy.maths.masks import mask_from_lengths
from policy.pretraining import GradientBalance
from policy.sampling.rollout import Rollout, unflatten
from stages.job import Job
from stages.ppo.experience import Experience
from stages.ppo.out_of_memory import RowsThatFit
from stages.ppo.settings import PpoConfig
from stages.ppo.stop import check_experience
from stages.settings import plain

ROLLOUTS, SNAPSHOTS, RUN = "rollouts", "snapshots", "run.json"
T = TypeVar("T")
Steps = list[dict[str, float]]  # the metrics of each optimiser step of an iteration
Optimizers = Mapping[str, tuple[torch.optim.Optimizer, LambdaLR]]  # keys "policy" and "value"


class Record(NamedTuple):
    """One iteration: the inputs of its update and the metrics of its steps."""

    experience: Experience
    kl_coef: float
    orders: list[Tensor]  # per inner epoch: the (batch,) permutation that is split into minibatches
    text: list[Tensor]  # per optimiser step: pretraining rows (rows, length); none without PPO-ptx
    steps: Steps
    rows_at_once: int  # episodes per forward pass, fewer than the recipe sets if memory ran out
    rows_in_trunk: int  # episodes per forward pass of the frozen layers
    stopped: str  # why the run stopped in this iteration; "" if it did not
    at_fault: list[int]  # the episodes of the minibatch it stopped in


class Recorder:
    """Collects what an iteration draws and measures, and writes it to disk, also if the iteration fails."""

    def __init__(self, config: PpoConfig, job: Job, device: torch.device, pad_id: int, fits: RowsThatFit):
        self.fits = fits
        self.run_directory, self.keep_all, self.pad_id = job.directory, config.keep_rollouts, pad_id
        self.drawn_orders: list[Tensor] = []
        self.drawn_text: list[Tensor] = []
        self.steps: Steps = []
        self._epoch_start = 0  # steps before the current inner epoch
        run = {
            "config": plain(config),
            "seed": job.seed,
            "parents": {role: str(path.absolute()) for role, path in job.parents.items()},
            "device": str(device),
            "threads": torch.get_num_threads(),
            "libraries": library_versions(),
        }
        (self.run_directory / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        (self.run_directory / ROLLOUTS / RUN).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")

    def orders(self, source: Iterator[Tensor]) -> Iterator[Tensor]:
        for order in source:
            self.drawn_orders.append(order)
            self._epoch_start = len(self.steps)
            yield order

    def text(self, source: Iterator[Tensor]) -> Iterator[Tensor]:
        for rows in source:
            self.drawn_text.append(rows)
            yield rows

    @contextmanager
    def sampling(self, iteration: int) -> Iterator[None]:
        """If sampling fails, point to the previous iteration: its update broke the model."""
        try:
            yield
        except ModelError as error:
            if iteration == 1:
                raise
            self._raise_with_place(error, f"ppo: iteration {iteration}, sampling", iteration - 1)

    @contextmanager
    def iteration(self, iteration: int, experience: Experience, kl_coef: float, minibatches: int) -> Iterator[Steps]:
        """Yield the list for the steps' metrics. A ModelError is raised again with its place and how to inspect it."""
        for remembered in (self.drawn_orders, self.drawn_text, self.steps):
            remembered.clear()
        try:
            check_experience(experience)
            yield self.steps
        except ModelError as error:
            place = f"ppo: iteration {iteration}"
            at_fault: list[int] = []
            if self.drawn_orders:
                number = len(self.steps) - self._epoch_start
                at_fault = self.drawn_orders[-1].chunk(minibatches)[number].tolist()
                place += f", minibatch {len(self.steps) + 1}"
            self._write(iteration, experience, kl_coef, stopped=str(error), at_fault=at_fault)
            self._raise_with_place(error, place, iteration)
        self._write(iteration, experience, kl_coef)

    def _write(
        self,
        iteration: int,
        experience: Experience,
        kl_coef: float,
        stopped: str = "",
        at_fault: list[int] | None = None,
    ) -> None:
        rows = self.fits.update.rows, self.fits.trunk.rows
        drawn = self.drawn_orders, self.drawn_text
        record = Record(experience, kl_coef, *drawn, self.steps, *rows, stopped, at_fault or [])
        write_record(record_path(self.run_directory, iteration), record, self.pad_id)
        if not self.keep_all:
            record_path(self.run_directory, iteration - 1).unlink(missing_ok=True)

    def _raise_with_place(self, error: ModelError, place: str, iteration: int) -> NoReturn:
        where = record_path(self.run_directory, iteration)
        raise ModelError(
            f"{place}: {str(error).removeprefix('ppo: ')} The batch is in {where}; look at it with: triptych replay "
            f"{self.run_directory} --step {iteration}"
        ) from error


def record_path(run_directory: Path, iteration: int) -> Path:
    return run_directory / ROLLOUTS / f"{iteration:06d}.safetensors"


def write_record(path: Path, record: Record, pad_id: int) -> None:
    """Write a record without padding, ids in the smallest integer type that fits. The file is written atomically."""
    rollout = record.experience.rollout
    mask = rollout.response_mask
    tensors = {
        "prompts": narrow(rollout.prompts[rollout.prompt_mask]),
        "prompt_lengths": narrow(rollout.prompt_mask.sum(1)),
        "responses": narrow(rollout.responses[mask]),
        "lengths": narrow(rollout.lengths),
        "ended": rollout.ended.clone(),
    }
    for name, value in record.experience._asdict().items():
        if isinstance(value, Tensor):  # cloned: safetensors refuses tensors that share memory
            tensors |= {f"tokens/{name}": value[mask]} if value.dim() == 2 else {f"episodes/{name}": value.clone()}
    tensors |= {f"parts/{name}": scores.clone() for name, scores in record.experience.parts.items()}
    if record.orders:
        tensors["orders"] = narrow(torch.stack(record.orders))
    if record.text:
        tensors["text"] = narrow(torch.stack(record.text))
    told = ("kl_coef", "steps", "rows_at_once", "rows_in_trunk", "stopped", "at_fault")
    about = {name: getattr(record, name) for name in told} | {"pad_id": pad_id}
    _save(path, tensors, about)


def read_record(path: Path, device: torch.device) -> Record:
    """Read a file of `write_record`, restoring its tensors exactly. Raises ModelError if it is damaged or missing."""
    tensors, about = _load(path, device)
    prompt_lengths, lengths = tensors["prompt_lengths"].long(), tensors["lengths"].long()
    # Prompts are padded on the left.
    prompt_mask = mask_from_lengths(prompt_lengths, int(prompt_lengths.max())).flip(1)
    response_mask = mask_from_lengths(lengths, int(lengths.max()))
    prompts, responses = (
        torch.full(mask.shape, about["pad_id"], device=device).masked_scatter(mask, ids.long())
        for ids, mask in ((tensors["prompts"], prompt_mask), (tensors["responses"], response_mask))
    )
    found: dict[str, dict[str, Any]] = {"tokens": {}, "episodes": {}, "parts": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name:
            found[kind][name] = unflatten(value, response_mask) if kind == "tokens" else value
    rollout = Rollout(prompts, prompt_mask, responses, response_mask, tensors["ended"])
    return Record(
        Experience(rollout=rollout, parts=found["parts"], **found["tokens"], **found["episodes"]),
        about["kl_coef"],
        [order.long().cpu() for order in tensors.get("orders", ())],
        [rows.cpu() for rows in tensors.get("text", ())],
        about["steps"],
        about["rows_at_once"],
        about.get("rows_in_trunk", about["rows_at_once"]),  # earlier records have no frozen layers
        about["stopped"],
        about["at_fault"],
    )


def narrow(ids: Tensor) -> Tensor:
    """Convert non-negative integers to int16, or to int32 if they do not fit."""
    largest = int(ids.max()) if ids.numel() else 0
    return ids.to(torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32)


def snapshot_path(run_directory: Path, iteration: int) -> Path:
    return run_directory / SNAPSHOTS / f"{iteration:06d}.safetensors"


def write_snapshot(path: Path, optimizers: Optimizers, balance: GradientBalance | None) -> None:
    """Write the trained weights in the optimisers' order, Adam's moments, the schedules' states and the average
    gradient norms."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for role, (optimizer, schedule) in optimizers.items():
        tensors |= {f"{role}/weight/{i}": weight.detach() for i, weight in enumerate(_weights(optimizer))}
        state = optimizer.state_dict()
        for i, moments in state["state"].items():
            tensors |= {f"{role}/{name}/{i}": value for name, value in moments.items()}
        about[role] = {"groups": state["param_groups"], "schedule": schedule.state_dict()}
    about["norms"] = None if balance is None else balance.norms
    _save(path, tensors, about)


def read_snapshot(path: Path, optimizers: Optimizers, balance: GradientBalance | None, device: torch.device) -> None:
    """Restore weights, optimisers, schedules and average norms from a file of `write_snapshot`."""
    tensors, about = _load(path, device)
    if balance is not None:
        balance.norms = tuple(about["norms"])
    for role, (optimizer, schedule) in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, name, index = key.split("/")
            if owner == role and name != "weight":
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": about[role]["groups"]})
        schedule.load_state_dict(about[role]["schedule"])
        with torch.no_grad():
            for i, weight in enumerate(_weights(optimizer)):
                weight.copy_(tensors[f"{role}/weight/{i}"])


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, temporary, {"about": json.dumps(about)})
    os.replace(temporary, path)


def _load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise ModelError(f"no {path}; the run ended earlier, or ppo.keep_rollouts was false: choose another --step.")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["about"])  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); choose another --step, or run ppo again.") from error
