"""Affine coupling layers: bijections of a vector in which one half scales and shifts the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrocg.networks import MLP

__all__ = ["AffineCoupling", "random_halves"]


class AffineCoupling(nn.Module):
    r"""One affine coupling, :math:`y_b = x_b e^{s} + m`, with s and m functions of x_a and c.

    The log scale is bounded by :math:`s = \tanh(\cdot)`.

    Args:
        order: a permutation of the coordinates; its first half, rounded down, is a.
        n_condition: size of c.
        hidden: sizes of the hidden layers.

    Example:
        >>> coupling = AffineCoupling(torch.tensor([1, 0]), n_condition=1, hidden=(8,))
        >>> y, log_abs_det = coupling(torch.ones(5, 2), torch.zeros(5, 1))  # at the start y = x
        >>> y.shape, log_abs_det.abs().max().item()
        (torch.Size([5, 2]), 0.0)
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor, n_condition: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.n_a = len(order) // 2
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())
        self.network = MLP(
            self.n_a + n_condition, hidden, 2 * (len(order) - self.n_a), zero_output=True
        )

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log|det dy/dx|."""
        a, b, log_scale, shift = self._parts(x, condition)
        y = torch.cat([a, b * log_scale.exp() + shift], dim=-1)
        return y.index_select(-1, self.back), log_scale.sum(-1)

    def inverse(self, y: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log|det dy/dx| at that x."""
        a, b, log_scale, shift = self._parts(y, condition)
        x = torch.cat([a, (b - shift) * (-log_scale).exp()], dim=-1)
        return x.index_select(-1, self.back), log_scale.sum(-1)

    def _parts(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b = x.index_select(-1, self.order).tensor_split([self.n_a], dim=-1)
        log_scale, shift = self.network(torch.cat([a, condition], dim=-1)).chunk(2, dim=-1)
        return a, b, log_scale.tanh(), shift


def random_halves(n: int, n_couplings: int) -> list[Tensor]:
    """A random permutation for each pair of couplings, the second of which has it backwards.

    The same for every call: they are part of what a saved model means.

    Args:
        n: number of coordinates.
        n_couplings: how many permutations.

    Example:
        >>> first, second = random_halves(4, 2)
        >>> first.tolist() == second.flip(0).tolist()
        True
    """
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(n, generator=generator) for _ in range(0, n_couplings, 2)]
    return [orders[i // 2].flip(0) if i % 2 else orders[i // 2] for i in range(n_couplings)]
