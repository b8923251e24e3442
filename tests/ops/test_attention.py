"""The block: attention against its formula, masks and slices of it, stochastic depth."""

import pytest
import torch
from torch import Tensor

from mimkit.ops.attention import Attention, Block, attend, drop_path, drop_path_rates


def by_formula(attention: Attention, x: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    batch, n, width = x.shape
    q, k, v = attention.qkv(x).view(batch, n, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (width / attention.heads) ** 0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
    shares = scores.softmax(-1)
    return attention.proj((shares @ v).transpose(1, 2).reshape(batch, n, width)), shares


def attention_of(width: int = 24, heads: int = 3) -> Attention:
    return Attention(width, heads).double()


def tokens(n: int = 10, width: int = 24) -> Tensor:
    return torch.randn(2, n, width, dtype=torch.float64)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention, x = attention_of(), tokens()
    assert torch.allclose(attention(x), by_formula(attention, x)[0])


def test_tokens_that_nobody_may_look_at_change_nothing() -> None:
    attention, x = attention_of(), tokens()
    allowed = torch.ones(2, 10, dtype=torch.bool)
    allowed[0, 7:] = False
    assert torch.allclose(attention(x, key_mask=allowed), by_formula(attention, x, allowed)[0])
    changed = x.clone()
    changed[0, 7:] += 5
    assert torch.allclose(attention(changed, key_mask=allowed)[0, :7], attention(x, key_mask=allowed)[0, :7])


@pytest.mark.parametrize("last", [1, 4, 10])
def test_the_last_tokens_alone_are_the_same_as_all_and_cut(last: int) -> None:
    block, x = Block(24, 3).double(), tokens()
    assert torch.allclose(block(x, last=last), block(x)[:, -last:])


def test_probabilities_come_in_slices_of_queries() -> None:
    attention, x = attention_of(), tokens()
    slices = list(attention.probabilities(x, chunk=4))
    assert [part.shape for part in slices] == [(2, 3, 4, 10), (2, 3, 4, 10), (2, 3, 2, 10)]
    assert torch.allclose(torch.cat(slices, dim=2), by_formula(attention, x)[1])


def test_probabilities_are_float32_at_least() -> None:
    attention = Attention(8, 2).bfloat16()
    assert next(attention.probabilities(torch.randn(1, 3, 8, dtype=torch.bfloat16))).dtype == torch.float32


@pytest.mark.parametrize("keys", [0, 3])
def test_bf16_training_stays_close_to_float64(keys: int) -> None:
    attention, x = attention_of(), tokens()
    allowed = None
    if keys:
        allowed = torch.ones(2, 10, dtype=torch.bool)
        allowed[:, -keys:] = False
    exact, gradients = attention(x, key_mask=allowed), []
    for dtype in (torch.float64, torch.float32):
        part = Attention(24, 3).to(dtype)
        part.load_state_dict(attention.state_dict())
        given = x.detach().clone().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            out = part(given, key_mask=allowed)
        assert torch.allclose(out.double(), exact, atol=0.02)
        out.double().square().sum().backward()
        gradients.append(given.grad.double())
    assert torch.allclose(*gradients, atol=0.05 * gradients[0].abs().max().item())


def test_layer_scale_multiplies_both_branches() -> None:
    plain, scaled, x = Block(24, 3).double(), Block(24, 3, layer_scale=0.0).double(), tokens()
    scaled.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(scaled(x), x)
    scaled.ls1.gamma.data.fill_(1)
    scaled.ls2.gamma.data.fill_(1)
    assert torch.equal(scaled(x), plain(x))


def test_stochastic_depth_drops_whole_samples_and_scales_the_rest() -> None:
    x, noise = torch.ones(4, 3, 2), torch.tensor([0.1, 0.2, 0.25, 0.9])[:, None, None]
    assert drop_path(x, 0.25, noise)[:, 0, 0].tolist() == [0, 0, pytest.approx(4 / 3), pytest.approx(4 / 3)]
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3]) and drop_path_rates(0.3, 1) == [0]


def test_a_block_drops_in_training_alone() -> None:
    block, x = Block(24, 3, drop_path=0.999).double(), tokens()
    torch.manual_seed(0)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)


def by_definition(block: Block, x: Tensor, key_mask: Tensor | None, last: int | None) -> Tensor:
    """Both branches computed for every sample and multiplied by what is drawn."""
    kept = [(torch.rand(len(x)) >= block.rate).to(x)[:, None, None] for _ in range(2)]
    scales = [each / (1 - block.rate) for each in kept]
    y = (x if last is None else x[:, -last:]) + scales[0] * block.attn(block.norm1(x), last, key_mask)
    return y + scales[1] * block.mlp(block.norm2(y))


@pytest.mark.parametrize("last", [None, 2])
@pytest.mark.parametrize("rate", [0.01, 0.5, 0.999])
def test_samples_that_are_dropped_need_not_be_computed(rate: float, last: int | None) -> None:
    torch.manual_seed(0)
    block, x = Block(24, 3, drop_path=rate).double().train(), torch.randn(8, 5, 24, dtype=torch.float64)
    key_mask = torch.rand(8, 5) < 0.8
    key_mask[:, 0] = True
    results = []
    for compute in (block, lambda *a: by_definition(block, a[0], a[2], a[1])):
        block.zero_grad()
        torch.manual_seed(1)
        out = compute(x, last, key_mask)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in block.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_a_bias_is_added_to_the_scaled_scores_and_shows_in_the_probabilities() -> None:
    attention, x = attention_of(), tokens()
    bias = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    q, k, v = attention._heads(attention.qkv(x), 3)
    shares = (q @ k.mT / 8**0.5 + bias).softmax(-1)
    assert torch.allclose(attention(x, bias=bias), attention.proj((shares @ v).transpose(1, 2).flatten(2)))
    seen = torch.cat(list(attention.probabilities(x, bias=bias, chunk=4)), 2)
    assert torch.allclose(seen, shares)


def test_a_bias_may_depend_on_the_queries_before_they_are_scaled() -> None:
    attention, x = attention_of(), tokens()
    q, _, _ = attention._heads(attention.qkv(x), 3)
    made = q.sum(-1, keepdim=True).expand(-1, -1, -1, 10) * torch.linspace(-1, 1, 10, dtype=torch.float64)
    later = attention(x, bias=lambda q: q.sum(-1, keepdim=True) * torch.linspace(-1, 1, 10).to(q))
    assert torch.allclose(later, attention(x, bias=made))


@pytest.mark.parametrize("boolean", [True, False])
def test_a_bias_and_a_mask_of_keys_act_together(boolean: bool) -> None:
    attention, x = attention_of(), tokens()
    allowed = torch.ones(2, 10, dtype=torch.bool)
    allowed[0, 7:] = False
    bias = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    if boolean:
        bias = (bias > 0) | torch.eye(10, dtype=torch.bool)
    shown = torch.cat(list(attention.probabilities(x, None, allowed, bias)), 2)
    assert torch.all(shown[0, :, :, 7:] == 0) and torch.all((shown > 0)[1] == (bias[0] if boolean else True))
    _, _, v = attention._heads(attention.qkv(x), 3)
    assert torch.allclose(
        attention(x, None, allowed, bias), attention.proj((shown @ v).transpose(1, 2).flatten(2))
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keys_marked_beside_a_bias_have_probability_zero_and_an_image_without_keys_stays_finite(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(3, 2, 6, 4) for _ in range(3))
    bias, allowed = torch.randn(1, 2, 6, 6), torch.ones(3, 6, dtype=torch.bool)
    allowed[0, 4:], allowed[1] = False, False
    q, k, v, bias = (x.to(dtype).requires_grad_() for x in (q, k, v, bias))
    got = attend(q, k, v, allowed, bias)
    want = torch.cat(
        [
            attend(q[:1], k[:1, :, :4], v[:1, :, :4], None, bias[..., :4]),
            attend(q[2:], k[2:], v[2:], None, bias),
        ]
    )
    torch.testing.assert_close(got[[0, 2]], want)
    got.float().square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v, bias)) and not v.grad[0, :, 4:].any()


def test_the_last_queries_alone_have_the_same_probabilities() -> None:
    attention, x = attention_of(), tokens()
    whole = torch.cat(list(attention.probabilities(x)), 2)
    assert torch.allclose(torch.cat(list(attention.probabilities(x, last=3)), 2), whole[:, :, -3:])
