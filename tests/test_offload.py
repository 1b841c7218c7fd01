"""Frozen models leave memory between the moments in which they are read, and come back the same to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_recipe import Chain
from tiny_models import quickstart_tokenizer, tiny_llama

from policy.memory.offload import weights_on_disk
from policy.sampling.rollout import as_rollout, response_logprobs
from reward.scalar_model import response_scores
from stages.ppo.roles import Roles, load_roles

CPU = torch.device("cpu")
ANSWERS = as_rollout([[5, 6, 7], [8], [9, 10]], [[20, 21, 1], [22, 1], [23, 24, 25]], 0, CPU)


def bytes_held(model: torch.nn.Module) -> int:
    return sum(weight.untyped_storage().nbytes() for weight in model.parameters())


@pytest.fixture
def roles(chain: Chain) -> Roles:
    return load_roles(chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, None, offload_frozen=True)


@torch.no_grad()
def test_reference_and_reward_model_read_the_same_each_time_they_come_back(chain: Chain, roles: Roles) -> None:
    kept = load_roles(chain.checkpoint("sft"), chain.checkpoint("reward_model"), CPU, None)
    assert set(roles.offloaded) == {"reference", "reward"} and not kept.offloaded
    for _ in range(3):
        with roles.as_reference():
            assert torch.equal(*(response_logprobs(r.reference, ANSWERS, 1.0).logprobs for r in (roles, kept)))
        with roles.as_reward():
            assert torch.equal(*(response_scores(r.reward, ANSWERS) for r in (roles, kept)))
        assert bytes_held(roles.reference) == 0 and bytes_held(roles.reward) == 0
    assert bytes_held(roles.policy) > 0 and bytes_held(roles.value) > 0


@torch.no_grad()
def test_a_step_of_the_policy_does_not_reach_the_reference_on_disk(roles: Roles) -> None:
    """Catches: both map the same file, and the policy's steps are written into what the reference reads."""
    with roles.as_reference():
        before = response_logprobs(roles.reference, ANSWERS, 1.0).logprobs
    for weight in roles.policy.parameters():
        weight.add_(1.0)
    with roles.as_reference():
        assert torch.equal(response_logprobs(roles.reference, ANSWERS, 1.0).logprobs, before)


def test_it_leaves_memory_after_an_error_too(roles: Roles) -> None:
    with pytest.raises(RuntimeError, match="too large"), roles.as_reward():
        raise RuntimeError("too large")
    assert bytes_held(roles.reward) == 0


def test_a_model_in_several_files_comes_back_whole(tmp_path: Path) -> None:
    model = tiny_llama(quickstart_tokenizer())
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    before = [weight.detach().clone() for weight in model.parameters()]
    on_disk = weights_on_disk(model, tmp_path)
    assert on_disk is not None
    with on_disk.loaded():
        pass
    with on_disk.loaded():
        assert all(map(torch.equal, model.parameters(), before))


def test_what_a_checkpoint_does_not_hold_by_name_shape_and_type_stays_in_memory(tmp_path: Path) -> None:
    model = tiny_llama(quickstart_tokenizer())
    assert weights_on_disk(model, tmp_path) is None
    model.save_pretrained(tmp_path)
    assert weights_on_disk(model, tmp_path) is not None
    model.resize_token_embeddings(model.config.vocab_size + 3)
    assert weights_on_disk(model, tmp_path) is None
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert weights_on_disk(model.float(), tmp_path) is None
