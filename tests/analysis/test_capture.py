"""What is overheard from torch's attention calls is what they compute."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimkit.analysis import capture
from mimkit.encoders.base import AttentionSite


class Call(nn.Module):
    """One call of fused attention with the identity as values: its output is the attention itself."""

    def __init__(self, heads: int = 2, **options: object) -> None:
        super().__init__()
        self.num_heads, self.options = heads, options

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        eye = torch.eye(k.shape[-2]).expand(*k.shape[:-1], -1)
        return F.scaled_dot_product_attention(q, k, eye, **self.options)


def heard(module: nn.Module, *given: Tensor) -> tuple[Tensor, Tensor]:
    """(probabilities that were overheard, the module's output)."""
    parts: list[Tensor] = []

    def take(place: int, scores: Iterator[Tensor]) -> None:
        parts.extend(part.softmax(-1) for part in scores)

    with capture.listening([AttentionSite("call", module, (1, 1))], take):
        output = module(*given)
    return torch.cat(parts, 2), output


MASK = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
CALLS = {
    "plain": {},
    "scaled": {"scale": 0.7},
    "causal": {"is_causal": True},
    "added to": {"attn_mask": MASK},
    "masked": {"attn_mask": MASK > 0.3},
    "masked keys": {"attn_mask": (torch.arange(6) != 2)[None, None, None]},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=list(CALLS))
def test_scores_are_those_of_the_call(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "SLICE", 100)  # a few queries at a time
    q, k = torch.randn(3, 2, 6, 4), torch.randn(3, 2, 6, 4)
    seen, output = heard(Call(**options), q, k)
    torch.testing.assert_close(seen, output, atol=1e-5, rtol=1e-5)


def test_heads_folded_into_the_batch_are_told_apart() -> None:
    q, k = torch.randn(6, 5, 4), torch.randn(6, 5, 4)
    seen, output = heard(Call(heads=2), q, k)
    torch.testing.assert_close(seen, output.unflatten(0, (3, 2)), atol=1e-5, rtol=1e-5)


def test_nothing_stays_behind_when_a_pass_fails() -> None:
    module = Call()
    with pytest.raises(RuntimeError):
        heard(module, torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 3))
    assert not module._forward_hooks and not module._forward_pre_hooks
    q = torch.randn(1, 2, 6, 4)
    assert module(q, q).shape == (1, 2, 6, 6)
