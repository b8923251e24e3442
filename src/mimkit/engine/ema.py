"""An exponential moving average of the weights, kept beside the model and saved with it.

Polyak and Juditsky 1992; MAE's from-scratch baselines use decay 0.9999 (table 11), its pre-training none. Only
trained parameters are averaged: frozen teachers have an average of their own, buffers do not train.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mimkit.engine.shards import local
from mimkit.errors import DataError


class MovingAverage:
    """average <- decay x average + (1 - decay) x weights, after every step whose update took place."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone(memory_format=torch.preserve_format)
            for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], finite: Tensor) -> None:
        """Take a step towards the weights, of length zero where `finite` is False, without a look from the host."""
        share = finite.float() * (1.0 - self.decay)
        for name, average in self.weights.items():
            local(average).lerp_(local(parameters[name].detach()), share)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over saved averages. Raises DataError when names differ."""
        if set(weights) != set(self.weights):
            odd = sorted(set(weights) ^ set(self.weights))
            raise DataError(
                f"The saved moving average and the model differ in {len(odd)} parameters ({odd[0]}, ...); "
                "resume with the model that was saved."
            )
        for name, average in self.weights.items():
            average.copy_(weights[name])
