"""LARS beyond the golden case: what it leaves alone, what it keeps, and that it goes on from a checkpoint."""

from pathlib import Path

import torch
from torch import nn

from mimkit.engine import checkpoint
from mimkit.engine.checkpoint import State
from mimkit.engine.lars import LARS, trust_ratio
from mimkit.engine.optimiser import set_lr, update


def probe(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 3)


def train(head: nn.Linear, optimiser: LARS, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 5, generator=generator)
        optimiser.zero_grad()
        head(x).square().mean().backward()
        set_lr(optimiser, 0.5)
        optimiser.step()


def test_a_matrix_moves_by_a_fixed_share_of_its_own_size_whatever_the_size_of_the_gradient() -> None:
    for scale in (1e-6, 1.0, 1e6):
        weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))
        before = weight.detach().clone()
        weight.grad = scale * torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
        LARS([weight], lr=2.0, trust=0.01).step()
        moved = (weight.detach() - before).norm() / before.norm()
        torch.testing.assert_close(float(moved), 0.02, rtol=1e-5, atol=0)


def test_biases_are_neither_scaled_nor_decayed() -> None:
    bias = nn.Parameter(torch.ones(3))
    bias.grad = torch.tensor([1.0, 2.0, 3.0])
    LARS([bias], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(bias.detach(), 1 - 0.1 * torch.tensor([1.0, 2.0, 3.0]))


def test_the_ratio_is_one_where_weights_or_gradient_are_zero() -> None:
    zero, some = torch.zeros(2, 2), torch.ones(2, 2)
    assert trust_ratio(zero, some, 0.001) == trust_ratio(some, zero, 0.001) == 1
    assert trust_ratio(some, some, 0.001) == torch.tensor(0.001)


def test_what_has_no_gradient_stays_without_a_moment() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([weight], lr=1.0)
    optimiser.step()
    assert torch.equal(weight.detach(), torch.ones(2, 2)) and not optimiser.state


def test_a_closure_is_called_first_and_its_loss_returned() -> None:
    head = probe()
    optimiser = LARS(head.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        loss = head(torch.ones(1, 5)).sum()
        loss.backward()
        return loss

    expected, before = float(head(torch.ones(1, 5)).sum().detach()), head.bias.detach().clone()
    assert float(optimiser.step(closure).detach()) == expected
    torch.testing.assert_close(head.bias.detach(), before - 0.1)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    head = probe()
    optimiser = LARS(head.parameters(), lr=1.0)
    head(torch.ones(1, 5)).sum().backward()
    before = head.weight.detach().clone()
    update(optimiser, torch.tensor(float("nan")), torch.tensor(False), clip=None)
    assert torch.equal(head.weight, before) and not optimiser.state


def test_it_continues_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    whole, stopped, resumed = probe(), probe(), probe(seed=1)
    whole_optimiser, optimiser, other = (LARS(head.parameters()) for head in (whole, stopped, resumed))
    train(whole, whole_optimiser, range(6))
    train(stopped, optimiser, range(3))
    folder = checkpoint.save(tmp_path, State(step=3), stopped, optimiser)
    checkpoint.restore(folder, resumed, other)
    train(resumed, other, range(3, 6))
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
