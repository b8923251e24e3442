"""What a model costs, by counting: parameters, floating-point operations, bytes kept for the backward pass.

Counts hold for any machine; `mimkit plan` and the progress line divide them by what this machine can do. A
multiply-add is two operations; matrix products, convolutions and attention are counted, element-wise work is not
(as in the tables of the papers).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mimkit.data.batch import Batch
from mimkit.encoders.base import Encoder
from mimkit.methods.base import Method


def parameters(module: nn.Module) -> int:
    """Number of values in all parameters, fixed tables included."""
    return sum(p.numel() for p in module.parameters())


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of `call()`, backward passes in it included."""
    # torch does not count its fused attention kernels on every device: the plain form is the same arithmetic
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def encoder_flops(encoder: Encoder, size: tuple[int, int]) -> int:
    """Operations of one forward pass over one whole image of `size`; the encoder may live on the meta device."""
    device = next(encoder.parameters()).device
    image = torch.zeros(1, encoder.channels, *size, device=device)
    with torch.no_grad():
        return flops(lambda: encoder(image))


def example_batch(model: nn.Module, size: tuple[int, int], images: int) -> Batch:
    """A batch of grey noise on the device of `model`, with masks for a method, with labels 0 for a task.

    What a step costs does not depend on the pixels.
    """
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    device = next(model.parameters()).device
    pixels = torch.randn(images, encoder.channels, *size, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(images, device=device)
    if isinstance(model, Method):
        return Batch(pixels.to(device), ids, model.draw_mask(pixels, seed=0).to(device))
    return Batch(pixels.to(device), ids, targets=torch.zeros_like(ids))


def step_flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Operations of one image in one training step, forward and backward."""
    batch = example_batch(model, size, images=1)

    def step() -> None:
        model(batch).total.backward()

    with _still(model):
        count = flops(step)
    model.zero_grad(set_to_none=True)
    return count


def activation_bytes(
    model: nn.Module, size: tuple[int, int], autocast: Callable[[], AbstractContextManager[object]]
) -> int:
    """Bytes that one image more in the batch keeps alive until the backward pass, under `autocast()`."""
    kept = []
    for images in (1, 2):
        batch = example_batch(model, size, images)
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, seen: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(), _still(model):
            model(batch)
        kept.append(sum(storages.values()))
    return max(1, kept[1] - kept[0])


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Batch norms in evaluation mode: noise must not enter their statistics, and one image alone has none."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    modes = [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.train(mode)
