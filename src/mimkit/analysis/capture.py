"""Listening to attention while a model runs: the scores of each layer, from whatever computes them.

Fused attention never shows its probabilities, and a hook on a dropout layer that is not there collects nothing. So
the calls themselves are overheard: within the forward pass of an attention module, the first softmax over keys hands
over its scores (timm's SwinV2, the "eager" attention of transformers), and the first fused call its q, k and mask, from
which a slice of queries at a time is computed again, in float32 or better. The projections, where the work lies, are
never done twice, and the model's own output is untouched. Works for our encoders, timm's models and those of
transformers alike; a module that makes neither call is named in an error.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mimkit.encoders.base import AttentionSite
from mimkit.errors import UserError, counted
from mimkit.ops.attention import precise, scores

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
SLICE = 2**20  # scores at a time: 4 MiB in float32, so that what is done to them stays near the cache
Take = Callable[[int, Iterator[Tensor]], None]
"""(place of the layer among the sites, slices of queries of its scores (B * W, H, q, N))."""


@contextmanager
def listening(sites: Sequence[AttentionSite], take: Take) -> Iterator[None]:
    """Within: each forward pass of a site's module hands its scores to `take`. Leaves no hook behind, whatever happens.

    Raises UserError where a module was run and its attention could not be seen.
    """
    ear = _Ear(take, [_heads(site.module) for site in sites])
    with ExitStack() as stack:
        for place, site in enumerate(sites):
            stack.callback(site.module.register_forward_pre_hook(ear.opens(place)).remove)
            stack.callback(site.module.register_forward_hook(ear.closes(site.name)).remove)
        with torch.compiler.set_stance("force_eager"), ear:  # compiled code makes no calls to overhear
            yield


class _Ear(TorchFunctionMode):
    """Overhears torch's calls; `place` is the layer that runs, None between layers and once it was heard."""

    def __init__(self, take: Take, heads: Sequence[int]) -> None:
        super().__init__()
        self.take, self.heads = take, heads
        self.place: int | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.place is not None:
            heads = self.heads[self.place]
            if func is F.scaled_dot_product_attention:
                self._hand(args[0].device, fused_scores(heads, *args, **kwargs))
            elif func in SOFTMAX and args[0].ndim in (3, 4):
                self._hand(args[0].device, slices(_by_head(args[0], heads)))
        return func(*args, **kwargs)

    def _hand(self, device: torch.device, heard: Iterator[Tensor]) -> None:
        place, self.place = self.place, None
        if place is not None:
            with torch.autocast(
                device.type, enabled=False
            ):  # it would round the products to half precision again
                self.take(place, heard)

    def opens(self, place: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.place = place

        return hook

    def closes(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if self.place is not None:
                raise UserError(
                    f"Nothing was captured from {name!r}: its attention calls neither torch's softmax nor its fused "
                    'kernel; build the model with plain attention (transformers: attn_implementation="eager").'
                )

        return hook


def queries_at_once(shape: Sequence[int]) -> int:
    """How many queries of scores (B, H, N, N) make a slice."""
    return max(1, SLICE // max(1, shape[0] * shape[1] * shape[-1]))


def slices(whole: Tensor) -> Iterator[Tensor]:
    """Scores (B, H, N, N) that are at hand anyway, a few queries at a time."""
    yield from whole.detach().split(queries_at_once(whole.shape), dim=2)


def fused_scores(
    heads: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Iterator[Tensor]:
    """The scores (B, H, q, N) that torch's fused attention computes from these arguments, a few queries at a time."""
    q, k = (precise(_by_head(x.detach(), heads)) for x in (q, k))
    mask = _by_head(attn_mask, heads) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    if is_causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return scores(q, k, mask, queries_at_once((*q.shape[:2], k.shape[2])), scale)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B * H, N, M), as some models call it, -> (B, H, N, M)."""
    return x.unflatten(0, (-1, heads)) if x.ndim == 3 else x


def _heads(module: Any) -> int:
    """Heads of an attention module, by the names that libraries give the number."""
    return int(getattr(module, "num_heads", getattr(module, "heads", 1)))


def checked(heard: Iterator[Tensor], site: AttentionSite, keys: int) -> Iterator[Tensor]:
    """The scores, unless they are over other tokens than prefix and `keys`: then no position would be true."""
    for part in heard:
        if part.shape[-1] != site.prefix + keys:
            raise UserError(
                f"{site.name!r} attends to {counted(part.shape[-1], 'token')}, but its geometry (window {site.window}, "
                f"stride {site.stride}, {site.prefix} prefix tokens) makes {site.prefix + keys}; the analysis does not "
                "know this layout."
            )
        yield part
