import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from policy.maths.logprobs import differentiable_entropy, entropy, token_logprobs, token_logprobs_from_hidden

N, WIDTH, VOCAB, TEMPERATURE = 23, 5, 17, 0.7


def head_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(s, WIDTH, generator=rng, dtype=torch.float64) for s in (N, VOCAB))
    grad = torch.randn(N, generator=rng, dtype=torch.float64)  # unequal, so that a wrong order would show
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(VOCAB, (N,), generator=rng), grad


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("chunk", [1, 8, 23, 100])
def test_chunks_change_neither_values_nor_gradients(chunk: int, as_module: bool) -> None:
    hidden, weight, labels, grad = head_inputs()
    plain = ((hidden @ weight.T) / TEMPERATURE).log_softmax(-1)
    wanted = plain[torch.arange(N), labels]
    wanted_grads = torch.autograd.grad((wanted * grad).sum(), (hidden, weight))

    head = (lambda rows: rows @ weight.T) if as_module else weight
    got = token_logprobs_from_hidden(hidden, head, labels, TEMPERATURE, chunk)
    got_grads = torch.autograd.grad((got.logprobs * grad).sum(), (hidden, weight))
    torch.testing.assert_close(got.logprobs, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.entropy, -(plain.exp() * plain).sum(-1).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_grads, wanted_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_a_frozen_head_gets_no_gradient_and_the_text_gets_the_same(chunk: int) -> None:
    hidden, weight, labels, grad = head_inputs()
    found = []
    for head in (weight, weight.detach()):
        got = token_logprobs_from_hidden(hidden, head, labels, TEMPERATURE, chunk)
        assert not got.entropy.requires_grad
        found.append((*got, *torch.autograd.grad((got.logprobs * grad).sum(), hidden)))
    assert weight.grad is None
    for whole, frozen in zip(*found, strict=True):
        torch.testing.assert_close(frozen, whole, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_under_autocast_rounds_a_gradient_no_further() -> None:
    """A label of high probability leaves a small gradient, a difference that bfloat16 must not be left to take."""
    hidden, weight, labels, grad = head_inputs()
    labels = (hidden @ weight.T).argmax(-1)
    exact = token_logprobs((3 * hidden) @ weight.T, labels)
    (wanted,) = torch.autograd.grad((exact * grad).sum(), hidden)
    worst = []
    for head in (weight.float().detach().requires_grad_(), weight.float().detach()):
        with torch.autocast("cpu", torch.bfloat16):
            got = token_logprobs_from_hidden(3 * hidden.float(), head, labels, chunk=8).logprobs
        (found,) = torch.autograd.grad((got * grad).sum(), hidden)
        worst.append(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).median())
    assert worst[1] < 1.2 * worst[0] < 0.1


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_the_entropy_carries_its_gradient_where_asked(chunk: int, as_module: bool) -> None:
    """In float64 against the plain sum over the vocabulary; beside the log-probabilities' own gradient."""
    hidden, weight, labels, grad = head_inputs()
    plain = ((hidden @ weight.T) / TEMPERATURE).log_softmax(-1)
    entropies = -(plain.exp() * plain).sum(-1)
    loss = (plain[torch.arange(N), labels] * grad).sum() + (entropies * grad.flip(0)).sum()
    wanted_grads = torch.autograd.grad(loss, (hidden, weight))

    head = (lambda rows: rows @ weight.T) if as_module else weight
    got = token_logprobs_from_hidden(hidden, head, labels, TEMPERATURE, chunk, entropy_gradient=True)
    torch.testing.assert_close(got.entropy, entropies, rtol=1e-12, atol=1e-12)
    loss = (got.logprobs * grad).sum() + (got.entropy * grad.flip(0)).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), wanted_grads, rtol=1e-10, atol=1e-12)


def test_a_forbidden_token_leaves_the_entropy_s_gradient_finite() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    differentiable_entropy(logits).backward()
    probability = 1 / (1 + math.exp(-1))
    # Of two outcomes, dH/dz = -p (1 - p) z where z is their difference of logits.
    slope = probability * (1 - probability)
    torch.testing.assert_close(logits.grad, torch.tensor([slope, -slope, 0.0]))


def test_entropy_is_a_measurement_without_gradient() -> None:
    hidden, weight, labels, _ = head_inputs()
    assert not token_logprobs_from_hidden(hidden, weight, labels, chunk=8).entropy.requires_grad
    assert not token_logprobs_from_hidden(hidden, lambda rows: rows @ weight.T, labels, chunk=8).entropy.requires_grad


@pytest.mark.parametrize("as_module", [False, True])
def test_no_tensor_is_larger_than_a_chunk_of_logits(as_module: bool) -> None:
    class Largest(TorchDispatchMode):  # sees the result of every operation of both passes
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
            self.size = max([self.size, *(t.numel() for t in tensors)])
            return out

    hidden = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(50, 4, requires_grad=True)
    labels = torch.zeros(64, dtype=torch.int64)
    head = (lambda rows: rows @ weight.T) if as_module else weight
    sizes = []
    for chunk in (8, 64):
        with Largest() as largest:
            token_logprobs_from_hidden(hidden, head, labels, chunk=chunk).logprobs.sum().backward()
        sizes.append(largest.size)
    assert sizes == [8 * 50, 64 * 50]


def test_an_infinite_logit_forbids_a_token_without_spoiling_the_entropy() -> None:
    logits = torch.tensor([0.0, 0.0, -torch.inf])
    torch.testing.assert_close(entropy(logits), torch.tensor(2.0).log())


def test_probabilities_of_all_tokens_sum_to_one_at_every_temperature() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for temperature in (0.3, 1.0, 2.0):
        logprobs = token_logprobs(logits.expand(VOCAB, VOCAB), torch.arange(VOCAB), temperature)
        torch.testing.assert_close(logprobs.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_half_precision_logits_are_worked_on_in_float32() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = torch.tensor([1, 2, 3])
    got = token_logprobs(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, token_logprobs(logits.double(), labels).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden_type", [torch.float32, torch.bfloat16])
def test_autocast_computes_both_passes_in_its_type(hidden_type: torch.dtype, weight_type: torch.dtype) -> None:
    hidden, weight, labels, _ = head_inputs()
    hidden = hidden.detach().to(hidden_type).requires_grad_()
    weight = weight.detach().to(weight_type).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = token_logprobs_from_hidden(hidden, weight, labels, chunk=8).logprobs
        plain = token_logprobs(hidden @ weight.T, labels)
    torch.testing.assert_close(got, plain)
    got.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (hidden_type, weight_type)


def test_no_response_token_at_all_gives_empty_results() -> None:
    hidden, weight, labels, _ = head_inputs()
    assert token_logprobs_from_hidden(hidden[:0], weight, labels[:0]).logprobs.shape == (0,)


def test_temperature_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        token_logprobs(torch.zeros(2), torch.tensor(0), 0)
