"""What can be known without a GPU: on a stand-in for one (gpu_stand_in.py) no tensor is on the wrong device, and the
processor does not wait more often than it must; the script for a GPU says what it lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_or_cpu import benchmark
from gpu_stand_in import GPU, OnGpu, stand_in_gpu
from small_recipe import Chain
from test_gpu_check_numbers import KINDS, learner_on, updated
from test_ppo_stage import roll_out
from torch import Tensor

from pipeline.recipe import load_recipe
from policy.language_model import LanguageModel, choose_device
from policy.sampling.rollout import collect_rollout
from stages.ppo.out_of_memory import ran_out_of_memory
from stages.ppo.roles import load_roles

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.sh"


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with stand_in_gpu() as waits:
        there, here = torch.arange(3.0, device="cuda"), torch.ones(3)
        assert isinstance(there, OnGpu) and there.device == GPU
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            there + here
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            here[torch.zeros(1, dtype=torch.long, device="cuda")]
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert not waits
        assert (there + 1).sum().item() == 6 and (there[there > 0] * 2).cpu().tolist() == [2, 4]
        assert sum(waits.values()) == 3  # a number, a mask, a copy


def test_sampling_waits_twice_a_token_and_once_more_where_an_answer_ends(tiny: LanguageModel) -> None:
    """One wait is ours, one is transformers', which asks whether the mask has padding."""

    def waits(tokens: int) -> Counter[str]:
        with stand_in_gpu() as counted:
            model = type(tiny.model)(tiny.model.config).eval()
            model.load_state_dict(tiny.model.state_dict())
            collect_rollout(
                model.to("cuda"), [[5, 6, 7], [8, 9]], max_new_tokens=tokens, temperature=1.0, batch_size=2,
                stop_ids=[], pad_id=0, rng=torch.Generator("cuda").manual_seed(0),
            )  # fmt: skip
        return Counter({line: sum(n for (_, at), n in counted.items() if at == line) for _, line in counted})

    waits(2)  # how the architecture is read is tried once
    more = waits(9) - waits(4)
    assert sum(more.values()) <= 2 * 5, more


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "shared"])  # needs a reward model with adapters
def test_ppo_keeps_every_tensor_on_its_device(chain: Chain, tmp_path: Path, kind: str) -> None:
    config = replace(load_recipe(chain.path).ppo, monitor=None, **KINDS[kind])
    reward = chain.checkpoint("reward_model")
    learner, _ = learner_on(CPU, chain, reward, config, None)
    answers = roll_out(load_roles(chain.checkpoint("sft"), reward, CPU, None), config)
    expected, means = updated(chain, learner, answers, config, tmp_path)
    _, fresh = learner_on(CPU, chain, reward, config, None)  # with the adapters of before the update
    with stand_in_gpu():
        other, _ = learner_on(torch.device("cuda"), chain, reward, config, fresh)
        found, also = updated(chain, other, answers, config, tmp_path)
    for name, value in expected.items():
        got: Tensor = found[name]
        torch.testing.assert_close(got, value, atol=1e-5, rtol=1e-5)
    assert also == pytest.approx(means, rel=1e-3, abs=1e-5)


def test_float32_on_a_gpu_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("high")
    try:
        assert choose_device("auto").type == "cuda"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_without_a_gpu_the_script_says_so_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [SCRIPT], capture_output=True, text=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "gpu_check: torch sees no GPU here; run it where there is one, or rehearse it with --cpu\n"


def test_the_summary_names_every_part_that_went_wrong() -> None:
    module = benchmark("gpu_check")
    found = {
        "device": {"name": "a GPU"},
        "rollout": {"tiny": {"float32": {"ways": {"ours": {"share_of_limit": 0.25}, "graph": {"skipped": "no"}}}}},
        "ppo_step": {"tiny": {"float32": {"error": "ran out"}}},
        "tests": {"said": "1 failed", "failed": ["x"], "error": "1 failed"},
    }
    summary = module.headline(found)
    assert summary["rollout_tiny_float32"] == {"ours": 0.25}
    assert summary["went_wrong"] == {"ppo_step": ["ran out"], "tests": ["1 failed"]}
    json.dumps(summary)


def test_operations_are_those_of_the_weights_and_of_attention(tiny: LanguageModel) -> None:
    config = tiny.model.config
    of_layers = sum(weight.numel() for weight in tiny.model.model.layers.parameters())
    head = config.vocab_size * config.hidden_size
    counted = benchmark("gpu_update").operations(tiny.model, tokens=10, length=8, head_tokens=3)
    assert counted == 10 * (6 * of_layers + 6 * 2 * 32 * 8) + 3 * 6 * head


def test_a_decoding_step_reads_weights_once_and_each_row_s_keys_and_values(tiny: LanguageModel) -> None:
    module = benchmark("gpu_rollout")
    untied = sum(w.numel() for w in tiny.model.parameters()) - tiny.model.get_input_embeddings().weight.numel()
    cache = 2 * 2 * 2 * 8  # keys and values, layers, key heads, width of a head
    assert module.bytes_per_token(tiny.model, 5, 6, 4, 4) == 4 * (untied + 5 * 8 * cache)


@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_each_way_to_decode_gives_the_logits_of_a_whole_reading(tiny: LanguageModel, way: str) -> None:
    module = benchmark("gpu_rollout")
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        steps = module.Steps(way, tiny.model, ids[:, :4], 9)
        for _ in range(2 if way == "static" else 1):  # a fixed cache is used again
            found = module.decode(steps, ids[:, 4:], torch.Generator(), draw=False)
        whole = tiny.model(ids[:, :8]).logits[:, -1]
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["CUDA error: out of memory\nCUDA kernel errors", "CUBLAS_STATUS_ALLOC_FAILED when"])
def test_memory_that_a_gpu_s_libraries_lack_is_a_lack_of_memory(text: str) -> None:
    assert ran_out_of_memory(RuntimeError(text)) and not ran_out_of_memory(RuntimeError("CUDA error: invalid argument"))
