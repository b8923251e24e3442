"""Linear layers by oneDNN: the numbers of `F.linear`, forward, backward and beyond; and who gets the plain product."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimkit.ops import linear as module
from mimkit.ops.linear import Linear, linear

pytestmark = pytest.mark.skipif(not module._ONEDNN, reason="this torch has no oneDNN")

LARGE = [((196, 768), 3072), ((4, 49, 768), 768), ((3136, 128), 512), ((64, 3072), 768)]


def drawn(shape: tuple[int, ...], out: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, weight, bias that want gradients."""
    draw = torch.Generator().manual_seed(0)
    sizes = shape, (out, shape[-1]), (out,)
    return tuple(
        torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for s in sizes
    )


def by_onednn(y: Tensor) -> bool:
    assert y.grad_fn is not None
    return "OneDNN" in y.grad_fn.name()


@pytest.mark.parametrize(("shape", "out"), LARGE)
def test_large_products_are_right_to_rounding_forward_and_backward(shape: tuple[int, ...], out: int) -> None:
    exact, plain, ours = drawn(shape, out, torch.float64), drawn(shape, out), drawn(shape, out)
    grad = torch.randn((*shape[:-1], out), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = linear(*ours)
    assert by_onednn(y)
    results = []
    for result, inputs in ((F.linear(*exact), exact), (F.linear(*plain), plain), (y, ours)):
        result.backward(grad.to(result.dtype))
        results.append([result.detach(), *(x.grad for x in inputs)])
    for right, theirs, mine in zip(*results, strict=True):
        assert right is not None and theirs is not None and mine is not None
        assert mine.shape == right.shape and mine.is_contiguous()
        for found in (theirs, mine):  # both within a few roundings of float32, 1.2e-7 each
            assert (found - right).abs().mean() <= 1e-6 * right.std()


def test_slices_of_weights_strided_rows_and_no_bias_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    x, weight, bias = drawn((2, 9, 24), 48)
    for tokens, part, b in (
        (x[:, -4:], weight[:16], bias[:16]),
        (x.transpose(0, 1), weight[16:], None),
        (x[..., ::2], weight[:, 1::2], bias),
    ):
        y = linear(tokens, part, b)
        assert by_onednn(y)
        torch.testing.assert_close(y, F.linear(tokens, part, b))
        wanted = torch.autograd.grad(F.linear(tokens, part, b).square().sum(), (x, weight))
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), (x, weight)), wanted)


def test_what_wants_no_gradient_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    x, weight, bias = (t.detach() for t in drawn((5, 8), 6))
    assert linear(x, weight, bias).grad_fn is None
    frozen = linear(x.requires_grad_(), weight, bias)
    (grad,) = torch.autograd.grad(frozen.sum(), x)
    torch.testing.assert_close(grad, weight.sum(0).expand(5, 8))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_it_can_be_derived_twice_and_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    x, weight, bias = drawn((5, 8), 6)

    def penalty(product: object) -> tuple[Tensor, ...]:
        y = product(x, weight, bias).tanh().sum()  # type: ignore[operator]
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight, bias))

    torch.testing.assert_close(penalty(linear), penalty(F.linear))

    def of_a_sample(product: object) -> Tensor:
        def loss(w: Tensor, row: Tensor) -> Tensor:
            return product(row[None], w, bias).square().sum()  # type: ignore[operator]

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)

    torch.testing.assert_close(of_a_sample(linear), of_a_sample(F.linear))


def test_small_half_and_double_products_stay_with_torch() -> None:
    assert not by_onednn(linear(*drawn((16, 64), 64)))
    assert not by_onednn(linear(*drawn((196, 768), 3072, torch.float64)))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*drawn((196, 768), 3072)).dtype == torch.bfloat16


def test_operations_are_counted_as_those_of_a_plain_layer() -> None:
    x, weight, bias = drawn((196, 768), 3072)
    counts = []
    for product in (linear, F.linear):
        with FlopCounterMode(display=False) as counter:
            product(x, weight, bias).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 196 * 768 * 3072] * 2


def test_an_exported_layer_holds_torch_s_own_product() -> None:
    layer = Linear(768, 3072)
    exported = torch.export.export(layer, (torch.zeros(196, 768),))
    assert "aten.linear" in exported.graph_module.code and "mkldnn" not in exported.graph_module.code
