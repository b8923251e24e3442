"""FSDP2 (`fully_shard`; Zhao et al. 2023, Rajbhandari et al. 2020): weights, gradients and moments cut over processes.

Each process keeps its share of every tensor along the first axis (a `DTensor`); a block's weights are put together for
its forward and its backward pass and let go again. The model knows nothing of it: blocks are the members of its
`nn.ModuleList`s, all else is one more group. Weights travel and are added up in fp32, and autocast casts inside the
blocks as it does without shards, so losses are those of DDP to rounding. Files hold whole tensors: `whole` puts one
together, `cut` takes this process's share of one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# torch.distributed.fsdp and .tensor cost half a second of import, which only runs with shards shall pay
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class Root(nn.Module):
    """What is called instead of the sharded module: FSDP looks for the tensor to send backward in a plain tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> tuple[Any, Tensor]:
        loss = self.module(batch)
        return loss, loss.total


def shard(module: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> Root:
    """Cut `module` in place over all processes, block by block, and let the optimiser, which has made no step, hold the
    shards; frozen weights are cut too (a teacher is as large as its pupil). Call what is returned.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if optimiser.state:
        raise ValueError("The optimiser has made steps already; shard the module before.")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP cuts no channels-last weights
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    root = Root(module)
    fully_shard(root, mesh=mesh)
    for group in optimiser.param_groups:
        group["params"] = [module.get_parameter(names[id(parameter)]) for parameter in group["params"]]
    return root


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts that are put together one at a time: members of module lists that have weights, inner ones first."""
    found: dict[nn.Module, None] = {}
    for part in module.children():
        found |= dict.fromkeys(blocks(part))
        if isinstance(module, nn.ModuleList) and not isinstance(part, CONTAINERS) and _has_weights(part):
            found[part] = None
    return list(found)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor, the memory itself; any other tensor as it is."""
    return tensor.to_local() if _sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together from all processes, which all have to ask; any other tensor as it is."""
    return tensor.full_tensor() if _sharded(tensor) else tensor  # type: ignore[attr-defined]


def cut(value: Tensor, home: Tensor) -> Tensor:
    """This process's share of the whole tensor `value`, if `home`, of the same shape, is sharded; else `value`."""
    if not _sharded(home):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(home, DTensor)
    there = value.to(home.device)
    return distribute_tensor(there, home.device_mesh, home.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All tensors whole. All processes have to ask; those without `keep` get no sharded ones. Put together one by one,
    on the CPU, so that a GPU never holds more than one of them.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if not _sharded(tensor):
            found[name] = value
        elif keep:
            found[name] = value.cpu()
    return found


def norms(shares: Tensor) -> Tensor:
    """(P,) norms of whole tensors from the norms (P,) of this process's shares of them."""
    squares = shares.double().square()  # in float32 the square of a large norm would overflow
    dist.all_reduce(squares)
    return squares.sqrt().to(shares.dtype)


def hollow(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its buffers and has parameters without memory; see `filled`."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return deepcopy(module, memo)


@contextmanager
def filled(twin: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
    """While entered, which all processes do together: `twin`, made by `hollow`, with the whole weights of `module`, in
    its mode. An ordinary module, that one process may call alone: for evaluators.
    """
    empty = dict(twin.named_parameters(remove_duplicate=False))
    values = {name: whole(value.detach()) for name, value in module.named_parameters(remove_duplicate=False)}
    twin.load_state_dict(values, strict=False, assign=True)
    twin.train(module.training)
    try:
        yield twin
    finally:
        twin.load_state_dict(empty, strict=False, assign=True)


def _sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
