"""LARS (You et al. 2017) as MAE's linear probe uses it (appendix A.1): momentum on gradients that are scaled, tensor by
tensor, to a fixed share of the weights' own size.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """g = gradient; for weights of more than one axis g += weight_decay * w and g *= trust * |w| / |g| (1 where either
    norm is 0); m = momentum * m + g; w -= lr * m.

    The learning rate is set by the loop before each step. Nothing is read from the device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what `closure`, called first, gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if weight.ndim > 1:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
            gradient = gradient * trust_ratio(weight, gradient, group["trust"])
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        weight.sub_(state["momentum"], alpha=group["lr"])


def trust_ratio(weight: Tensor, gradient: Tensor, trust: float) -> Tensor:
    """trust * |weight| / |gradient|, a scalar on the device; 1 where either is all zero."""
    size, slope = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
    return torch.where((size > 0) & (slope > 0), trust * size / slope, torch.ones_like(size))
