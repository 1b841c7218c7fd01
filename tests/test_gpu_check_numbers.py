"""The numbers of every stage on a GPU against those on the CPU, from the same weights, data and sampled answers.

In float32 they differ by the order of additions alone, in bfloat16 by its eight bits. A GPU draws other random numbers
than a CPU, so what is compared is never sampled: answers are given, or taken greedily."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipe import Chain, job, write_recipe
from test_ppo_stage import roll_out
from torch import Tensor

from data_schema import Prompt, load_all
from data_schema.sources import Source
from pipeline.recipe import load_recipe
from pipeline.runner import run_pipeline
from policy.encoding import decode_responses, pad
from policy.language_model import load_language_model
from policy.sampling.decoder import CachedDecoder
from policy.sampling.generate import draw
from policy.sampling.rollout import Rollout, collect_rollout, response_logprobs
from reward.scalar_model import load_scalar_model, response_scores
from reward.sources import score_rollout
from stages.ppo.learner import Learner, make_learner
from stages.ppo.prompts import shuffles
from stages.ppo.rewards import load_ppo_rewards
from stages.ppo.roles import Roles, load_roles
from stages.ppo.settings import PpoConfig
from stages.ppo.stage import evaluate_rollout, update
from stages.reward_model import stage as reward_model
from stages.settings import LoraConfig
from stages.sft import stage as sft

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8)
# Largest difference, absolute and relative, of a number per token or text, and of a mean over a minibatch.
CLOSE = {"float32": {"atol": 2e-4, "rtol": 2e-4}, "bfloat16": {"atol": 8e-2, "rtol": 8e-2}}
MEANS = {"float32": {"abs": 1e-4, "rel": 2e-3}, "bfloat16": {"abs": 3e-2, "rel": 0.1}}
WORLD = "python:data_schema.quickstart.data"
PRECISIONS = ("float32", "bfloat16")


def moved(rollout: Rollout, where: torch.device) -> Rollout:
    return Rollout(*(part.to(where) for part in rollout[:5]))


@pytest.fixture(scope="module")
def answers(chain: Chain) -> Rollout:
    """Sixteen answers that the small chain's SFT model sampled on the CPU."""
    roles = load_roles(chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, None)
    return roll_out(roles, load_recipe(chain.path).ppo)


@pytest.fixture(scope="module")
def adapted_reward(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that is an adapter over the SFT model, for the shared backbone."""
    config = replace(load_recipe(chain.path).reward_model, lora=LORA)
    given = job(tmp_path_factory.mktemp("reward"), {role: chain.checkpoint(role) for role in ("sft", "comparisons")})
    reward_model.run(config, given)
    return given.output


# ---- SFT and reward model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("changes", [{}, {"lora": LORA}], ids=["whole", "lora"])
def test_sft_loses_the_same_at_every_step(
    chain: Chain, device: torch.device, tmp_path: Path, precision: str, changes: dict[str, Any]
) -> None:
    data = [Source(f"{WORLD}:demonstrations", limit=200)]
    found = {}
    for where in ("cpu", device.type):
        config = replace(load_recipe(chain.path).sft, data=data, device=where, precision=precision, **changes)
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-4))
        given = job(tmp_path / f"{where}_{len(found)}")
        found[len(found)] = sft.run(config, given), given.tracker.records
    (one, logged), (other, also) = found.values()
    compared = 0
    for a, b in zip(logged, also, strict=True):
        for name in a.keys() & {"sft/loss", "sft/held_out_loss"}:
            assert b[name] == pytest.approx(a[name], **MEANS[precision]), name
            compared += 1
    assert compared >= 3
    assert other.metrics["held_out_loss"] == pytest.approx(one.metrics["held_out_loss"], **MEANS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": LORA}, {"trainable_layers": 1}, {"frozen_layers": 1}],
    ids=["whole", "lora", "top", "frozen"],
)
def test_a_reward_model_scores_the_same_after_training(
    chain: Chain, device: torch.device, tmp_path: Path, answers: Rollout, precision: str, changes: dict[str, Any]
) -> None:
    if "frozen_layers" in changes and precision == "bfloat16":
        pytest.skip("a readout is always fitted in float32")
    scores = []
    for where in ("cpu", device.type):
        config = replace(load_recipe(chain.path).reward_model, device=where, **changes)
        if "frozen_layers" not in changes:
            config = replace(config, precision=precision)
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-4))
        given = job(
            tmp_path / f"{where}_{len(scores)}", {role: chain.checkpoint(role) for role in ("sft", "comparisons")}
        )
        reward_model.run(config, given)
        with torch.no_grad():
            scores.append(response_scores(load_scalar_model(given.output, CPU).eval(), answers))
    spread = float(scores[0].std())
    torch.testing.assert_close(scores[1] / spread, scores[0] / spread, **CLOSE[precision])


# ---- sampling


def test_the_logits_that_tokens_are_drawn_from_are_the_same_while_rows_leave(
    chain: Chain, device: torch.device
) -> None:
    prompts = pad([[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]], 0, "left")
    given = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(0))
    found: dict[int, list[Tensor]] = {}
    for k, where in enumerate((CPU, device)):
        model = load_language_model(chain.checkpoint("sft"), where).model
        rows = torch.arange(4, device=where)
        with torch.no_grad():
            decoder = CachedDecoder(model, prompts.ids.to(where), prompts.mask.to(where))
            found[k] = [decoder.logits.cpu()]
            for step in range(6):
                if step == 3:
                    rows = rows[[0, 2, 3]]
                    decoder.select(torch.tensor([0, 2, 3], device=where))
                decoder.append(given.to(where)[rows, step])
                found[k].append(decoder.logits.cpu())
    for a, b in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(b, a, **CLOSE["float32"])


def test_tokens_are_drawn_as_often_as_their_probabilities_say(device: torch.device) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0], device=device)
    n = 200_000
    drawn = draw(probabilities.expand(n, 5).contiguous(), torch.Generator(device).manual_seed(0))
    share = drawn.bincount(minlength=5).cpu() / n
    error = (probabilities * (1 - probabilities) / n).sqrt().cpu()
    assert ((share - probabilities.cpu()).abs() <= 5 * error).all()
    again = draw(probabilities.expand(n, 5).contiguous(), torch.Generator(device).manual_seed(0))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("answers_each", [1, 3])
def test_greedy_answers_are_the_same(chain: Chain, device: torch.device, answers_each: int) -> None:
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15]]
    found = []
    for where in (CPU, device):
        model, tokenizer = load_language_model(chain.checkpoint("sft"), where)
        found.append(
            collect_rollout(
                model, prompts, max_new_tokens=12, temperature=1e-4, batch_size=6, stop_ids=[tokenizer.eos_token_id],
                pad_id=0, rng=torch.Generator(where).manual_seed(0), answers_each=answers_each,
            )
        )  # fmt: skip
    for name in ("prompts", "responses", "response_mask", "ended"):
        assert torch.equal(getattr(found[1], name).cpu(), getattr(found[0], name)), name


# ---- PPO

KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lora": {"lora": LORA},
    "shared": {"lora": LORA, "shared_backbone": True},
    "trunk": {"trainable_layers": 1},
    "trunk with adapters": {"trainable_layers": 1, "lora": LORA},
    "checkpointing": {"gradient_checkpointing": True, "micro_batch": 3},
}


def learner_on(
    where: torch.device, chain: Chain, reward: Path, config: PpoConfig, like: Roles | None
) -> tuple[Learner, Roles]:
    """The models on a device; adapters, which are drawn on it, are made those of `like`."""
    torch.manual_seed(0)
    parts = config.lora, 0, config.shared_backbone, config.offload_frozen, config.trainable_layers
    roles = load_roles(chain.checkpoint("sft"), reward, where, *parts)
    with torch.no_grad():
        for name in ("policy", "value") if like is not None else ():
            pairs = zip(getattr(like, name).parameters(), getattr(roles, name).parameters(), strict=True)
            for source, target in pairs:
                target.copy_(source)
    return make_learner(roles, config), roles


def updated(
    chain: Chain, learner: Learner, answers: Rollout, config: PpoConfig, folder: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(the experience per token or episode, the update's metrics) of these answers, on the models' device."""
    roles = learner.roles
    where = roles.policy.device
    rollout = moved(answers, where)
    rollout = roles.read_trunk(rollout, config, learner.fits.trunk, folder)
    parents = {role: chain.checkpoint(role) for role in ("sft", "reward_model")}
    rewards = load_ppo_rewards(config, job(folder, parents), roles)
    prompts = [load_all(config.prompts, Prompt, 0)[i] for i in range(config.rollout_batch)]
    texts = decode_responses(roles.tokenizer, rollout.responses, rollout.lengths)
    experience = evaluate_rollout(roles, rollout, score_rollout(rewards, prompts, texts, rollout), config, 0.1)
    rng = torch.Generator().manual_seed(0)
    text = iter([torch.randint(5, 60, (4, 12), generator=rng) for _ in range(9)])
    metrics = update(learner, experience, text, config, shuffles(config.rollout_batch, rng))
    found = {name: value.cpu() for name, value in experience._asdict().items() if isinstance(value, Tensor)}
    return found, metrics


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_ppo_s_experience_and_update_are_the_same(
    chain: Chain,
    device: torch.device,
    answers: Rollout,
    adapted_reward: Path,
    tmp_path: Path,
    kind: str,
    precision: str,
) -> None:
    config = replace(load_recipe(chain.path).ppo, precision=precision, monitor=None, **KINDS[kind])
    reward = adapted_reward if config.shared_backbone else chain.checkpoint("reward_model")
    learner, roles = learner_on(CPU, chain, reward, config, None)
    other, _ = learner_on(device, chain, reward, config, roles)
    expected, means = updated(chain, learner, answers, config, tmp_path)
    found, also = updated(chain, other, answers, config, tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, **CLOSE[precision], msg=lambda text, name=name: f"{name}: {text}"
        )
    assert means.keys() == also.keys()
    for name, number in means.items():
        if precision == "float32" or "clip_fraction" not in name:
            assert also[name] == pytest.approx(number, **MEANS[precision]), name
    if precision == "float32":
        for name in ("policy", "value"):
            a, b = (torch.cat([w.detach().flatten().cpu() for w in getattr(each.roles, name).parameters()])
                    for each in (learner, other))  # fmt: skip
            torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-3)


def test_weights_that_wait_on_disk_come_back_as_they_were(chain: Chain, device: torch.device) -> None:
    roles = load_roles(chain.checkpoint("sft"), chain.checkpoint("reward_model"), device, None, offload_frozen=True)
    assert {"reference", "reward"} == roles.offloaded.keys()
    for _ in range(2):
        with roles.as_reference():
            for own, kept in zip(roles.policy.parameters(), roles.reference.parameters(), strict=True):
                assert kept.device.type == device.type and torch.equal(own, kept)
        assert all(weight.numel() == 0 for weight in roles.reference.parameters())


# ---- evaluation, and all stages after another


def test_evaluation_measures_the_same_reward_and_kl_of_given_answers(
    chain: Chain, device: torch.device, answers: Rollout
) -> None:
    found = []
    for where in (CPU, device):
        policy, reference = (load_language_model(chain.checkpoint(role), where) for role in ("ppo", "sft"))
        rollout = moved(answers, where)
        with torch.no_grad():
            base = response_logprobs(reference.model, rollout, 0.7).logprobs
            scores = response_scores(load_scalar_model(chain.checkpoint("reward_model"), where).eval(), rollout)
            sure = response_logprobs(policy.model, rollout, 0.7)
        kl = (sure.logprobs - base).sum(1)
        found.append([part.cpu() for part in (kl, scores, *sure)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, atol=5e-4, rtol=5e-4)


def test_all_stages_run_and_publish_there(chain: Chain, device: torch.device, tmp_path: Path) -> None:
    stages = ("sft", "comparisons", "reward_model", "ppo", "evaluate")
    path = write_recipe(
        tmp_path / "there.yaml", chain.recipe, **{f"{stage}__device": device.type for stage in stages}, name="there"
    )
    summary = run_pipeline(load_recipe(path), tmp_path / "out", quiet=True)
    for stage in stages:
        assert (tmp_path / "out" / "store" / "checkpoints" / summary["stages"][stage]["key"]).is_dir()
    expected = chain.summary["evaluation"]["sft"]
    assert summary["evaluation"]["sft"]["length_mean"] == pytest.approx(expected["length_mean"], rel=0.5)
