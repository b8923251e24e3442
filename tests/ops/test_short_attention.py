"""The attention for short bf16 sequences on a CPU, against double precision and against torch's fused kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.ops import attention
from mimkit.ops.attention import Attention, attend

SHAPES = [(2, 3, 1, 8), (2, 3, 50, 64), (1, 16, 197, 32)]


def heads(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value (B, H, N, D) as a qkv projection lays them out, and a gradient for the answer."""
    generator = torch.Generator().manual_seed(0)
    batch, n_heads, tokens, width = shape
    packed = torch.randn(batch, tokens, 3, n_heads, width, generator=generator).to(torch.bfloat16).to(dtype)
    grad = torch.randn(shape, generator=generator).to(torch.bfloat16).to(dtype)
    return [*(x.detach().requires_grad_() for x in packed.permute(2, 0, 3, 1, 4).unbind(0)), grad]


def answer_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, fused: bool) -> list[Tensor]:
    q, k, v, grad = heads(shape, dtype)
    y = F.scaled_dot_product_attention(q, k, v) if fused else attend(q, k, v)
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, (q, k, v), grad))]


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-12))


@pytest.mark.parametrize("shape", SHAPES)
def test_its_error_is_that_of_the_fused_kernel_and_its_gradients_less_than_twice_that(
    shape: tuple[int, ...],
) -> None:
    exact = answer_and_gradients(shape, torch.float64, fused=True)
    ours = answer_and_gradients(shape, torch.bfloat16, fused=False)
    theirs = answer_and_gradients(shape, torch.bfloat16, fused=True)
    for factor, got, fused, want in zip((1.2, 1.8, 1.8, 1.8), ours, theirs, exact, strict=True):
        assert error(got, want) <= max(factor * error(fused, want), 1e-6)


def test_autocast_changes_nothing_in_it() -> None:
    plain = answer_and_gradients(SHAPES[1], torch.bfloat16, fused=False)
    with torch.autocast("cpu", torch.bfloat16):
        inside = answer_and_gradients(SHAPES[1], torch.bfloat16, fused=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_only_short_unmasked_bf16_training_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = attention.ShortAttention.apply

    def watched(*qkv: Tensor) -> Tensor:
        taken.append(qkv[0].shape[2])
        return real(*qkv)

    monkeypatch.setattr(attention.ShortAttention, "apply", watched)
    q, k, v, _ = heads(SHAPES[1], torch.bfloat16)
    attend(q, k, v)
    assert taken == [50]
    with torch.no_grad():
        attend(q, k, v)
    attend(q, k, v, key_mask=torch.ones(2, 50, dtype=torch.bool))
    attend(q.float(), k.float(), v.float())
    attend(*heads((1, 1, attention.SHORT + 1, 8), torch.bfloat16)[:3])
    assert taken == [50]


def test_it_compiles_without_a_graph_break() -> None:
    torch.manual_seed(0)
    module = Attention(32, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = module(x), compiled(x)
    assert torch.equal(got, want)
    got.float().sum().backward()
    assert module.qkv.weight.grad is not None
