"""What only a real GPU can tell: memory that runs out, and how often the processor waits."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from gpu_or_cpu import benchmark

from policy.sampling.rollout import collect_rollout
from stages.ppo.prompts import shuffles
from stages.ppo.stage import update

pytestmark = pytest.mark.gpu
ROWS, PROMPT, RESPONSE = 32, 128, 128


def learning(device: torch.device, rows: int) -> tuple[Any, Any, Any]:
    """(learner, config, experience) of SmolLM2's shape with random weights."""
    module = benchmark("gpu_update")
    options = argparse.Namespace(shape="smollm2", batch=rows, micro=rows, prompt_len=PROMPT, response_len=RESPONSE)
    return module.prepare(options, "float32", device)


def test_where_memory_really_runs_out_half_the_rows_give_the_same_numbers(gpu: torch.device) -> None:
    learner, config, experience = learning(gpu, ROWS)
    module = benchmark("gpu_update")

    def once() -> dict[str, float]:
        return update(learner, experience, None, config, shuffles(ROWS, torch.Generator().manual_seed(0)))

    with module.same_state(learner.roles) as restore:
        once()  # the optimisers make their moments
        restore()
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        expected = once()
        peak = torch.cuda.max_memory_allocated()
        restore()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(gpu).total_memory
        torch.cuda.set_per_process_memory_fraction((held + 0.6 * (peak - held)) / total)
        try:
            found = once()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert learner.fits.update.rows in (ROWS // 2, ROWS // 4)
    for name, number in expected.items():
        assert found[name] == pytest.approx(number, rel=2e-3, abs=1e-4), name


def test_sampling_waits_for_the_gpu_no_more_than_three_times_a_token(gpu: torch.device) -> None:
    """One is ours, one transformers', which asks whether the mask has padding."""
    module = benchmark("gpu_device")
    model = module.make_model("tiny", gpu)
    rng = torch.Generator(gpu).manual_seed(0)

    def waits(tokens: int) -> int:
        prompts = [[40, 41, 42, 43], [44, 45]]

        def sample() -> None:
            collect_rollout(
                model, prompts, max_new_tokens=tokens, temperature=1.0, batch_size=2, stop_ids=[], pad_id=0, rng=rng
            )

        sample()
        counted: int = module.count_waits(sample, gpu)
        return counted

    assert waits(30) - waits(10) <= 3 * 20


def test_an_update_s_copy_is_the_same_to_rounding(gpu: torch.device) -> None:
    """Attention's backward pass adds in no fixed order on a GPU, so that bits may differ (docs/gpu.md)."""
    learner, config, experience = learning(gpu, 8)
    module = benchmark("gpu_update")
    with module.same_state(learner.roles) as restore:
        found = []
        for _ in range(2):
            found.append(update(learner, experience, None, config, shuffles(8, torch.Generator().manual_seed(0))))
            restore()
    for name, number in found[0].items():
        assert found[1][name] == pytest.approx(number, rel=1e-4, abs=1e-6), name
