"""Linear layers by oneDNN: the numbers of `F.linear`, forward, backward and beyond; and who gets the plain product."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mimkit.ops import linear as module
from mimkit.ops.attention import Mlp
from mimkit.ops.linear import Linear, after_gelu, linear

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
    return y.dtype == torch.float32 and y.grad_fn.name() == "_LinearBackward"


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


class CastCounter(TorchDispatchMode):
    """of: the shapes of what is cast while this lasts, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten._to_copy.default:
            self.of.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def kept_by(call: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of what `call` computes, parameters and inputs among them."""
    found: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = call()
    assert result.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("came_as", [torch.float32, None])
def test_under_autocast_the_bits_of_the_plain_layer_come_out(
    dtype: torch.dtype, bias: bool, came_as: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    tokens, layer, found = torch.randn(3, 7, 32), Linear(32, 16, bias=bias), []
    for ours in (True, False):
        x = tokens.to(came_as or dtype).requires_grad_()
        with torch.autocast("cpu", dtype):
            y = layer(x) if ours else F.linear(x, layer.weight, layer.bias)
        grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
        found.append([y, *grads])
    for mine, plain in zip(*found, strict=True):
        assert mine.dtype == plain.dtype and torch.equal(mine, plain)


def test_under_autocast_no_cast_weight_is_kept() -> None:
    layer, x = Linear(64, 16), torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = kept_by(lambda: layer(x))
        plain = kept_by(lambda: F.linear(x, layer.weight, layer.bias))
    weight, activations = 64 * 16, 5 * 64
    assert ours == 4 * weight + 2 * activations
    assert (
        plain == 2 * weight + 2 * activations
    )  # on top of the weight itself, which lies in memory either way


def test_without_gradients_autocast_casts_a_weight_once_for_all_its_uses() -> None:
    layer, x = Linear(64, 16), torch.randn(5, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), CastCounter() as counter:
        assert torch.equal(layer(x), layer(x))
    assert counter.of.count((5, 64)) == 2 and counter.of.count((16, 64)) == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_behind_gelu_the_bits_of_the_plain_layer_come_out(dtype: torch.dtype | None, bias: bool) -> None:
    torch.manual_seed(0)
    hidden, layer, found = torch.randn(3, 7, 32), Linear(32, 16, bias=bias), []
    for ours in (True, False):
        x = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            h = x.to(dtype or x.dtype)
            y = after_gelu(h, layer, lean=True) if ours else F.linear(F.gelu(h), layer.weight, layer.bias)
        grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
        found.append([y, *grads])
    for mine, plain in zip(*found, strict=True):
        assert torch.equal(mine, plain)


def test_behind_gelu_the_hidden_layer_is_kept_once_and_no_cast_weight() -> None:
    layer, hidden = Linear(64, 16), torch.randn(50, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = kept_by(lambda: after_gelu(hidden, layer))
        plain = kept_by(lambda: layer(F.gelu(hidden)))
    weight, activations = 64 * 16, 50 * 64
    assert ours == 4 * weight + 2 * activations
    assert plain >= 2 * weight + 2 * 2 * activations


def test_in_float32_a_lean_layer_keeps_the_hidden_layer_once() -> None:
    layer, hidden = Linear(64, 16), torch.randn(50, 64, requires_grad=True)
    weight, activations = 64 * 16, 50 * 64
    assert kept_by(lambda: after_gelu(hidden, layer, lean=True)) == 4 * (weight + activations)
    assert kept_by(lambda: after_gelu(hidden, layer)) == 4 * (weight + 2 * activations)


def test_layers_of_types_that_autocast_does_not_expect_are_cast_as_it_does() -> None:
    layer, hidden = Linear(32, 16), torch.randn(5, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = after_gelu(hidden, layer), layer(F.gelu(hidden))
    assert y.dtype == torch.bfloat16 and torch.equal(y, plain)
    (grad,) = torch.autograd.grad(y.sum(), hidden)
    assert torch.equal(grad, torch.autograd.grad(plain.sum(), hidden)[0])


def test_a_replaced_or_watched_layer_is_called_as_it_is() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    mlp, seen = Mlp(4, 8), []
    mlp.fc2.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = torch.randn(3, 4)
    mlp(x)
    assert torch.equal(seen[0], F.gelu(mlp.fc1(x)))
    mlp.fc2 = Doubled()  # type: ignore[assignment]
    assert torch.equal(mlp(x), 2 * F.gelu(mlp.fc1(x)))


def test_an_empty_batch_has_gradients_of_its_shape() -> None:
    x, mlp = torch.zeros(2, 0, 8, requires_grad=True), Mlp(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mlp(x)
    y.float().sum().backward()
    assert y.shape == (2, 0, 8) and x.grad is not None and x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in mlp.parameters())


@pytest.mark.parametrize("lean", [False, True])
def test_an_mlp_can_be_derived_twice_and_mapped(lean: bool) -> None:
    torch.manual_seed(0)
    mlp = Mlp(4, 8, lean).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x) and torch.autograd.gradgradcheck(mlp, x)
    weights = dict(mlp.named_parameters())

    def loss(own: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(mlp, own, row[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    whole = torch.autograd.grad(mlp(x).square().sum(), list(weights.values()))
    for name, total in zip(weights, whole, strict=True):
        torch.testing.assert_close(each[name].sum(0), total)


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
