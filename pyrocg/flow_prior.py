"""A normalising flow as prior over the latent variables."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrocg.networks import MLP

__all__ = ["FlowPrior"]


class FlowPrior(nn.Module):
    r"""A learned normalising flow, :math:`z = f(\epsilon)`, :math:`\epsilon \sim N(0, I)`.

    .. math:: \log p(z) = \log N(\epsilon \mid 0, I) - \log|\det \partial f/\partial \epsilon|,
              \quad \epsilon = f^{-1}(z)

    f is a rational spline of every coordinate, then coupling layers in which one half of z goes
    through splines whose shape depends on the other half; in between the coordinates are
    reversed. Each is the identity at the start, and always outside :math:`[-5, 5]`. In one
    dimension f is the spline alone. The inverse is in closed form, so densities are exact.
    Source: Durkan, Bekasov, Murray and Papamakarios (2019), "Neural spline flows"; Dolatabadi,
    Erfani and Leckie (2020), "Invertible generative modeling using linear rational splines".

    Args:
        latent_dim: dimension of z.
        n_couplings: number of coupling layers; two reach every coordinate.
        hidden: sizes of the hidden layers of each coupling.

    Example:
        >>> import torch
        >>> prior = FlowPrior(2)
        >>> round(prior().log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    loc: Tensor
    reversal: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_couplings: int = 4,
        hidden: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("reversal", torch.arange(latent_dim).flip(0), persistent=False)
        self.spline = transforms.Spline(latent_dim, _BINS, _BOUND)
        with torch.no_grad():
            for parameter in self.spline.parameters():
                parameter.zero_()
            self.spline.unnormalized_derivatives.fill_(_UNIT_SLOPE)
        self.couplings = nn.ModuleList(
            _spline_coupling(latent_dim, hidden)
            for _ in range(n_couplings if latent_dim > 1 else 0)
        )

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        # a Pyro transform remembers its last point: with a copy, each distribution has its own
        parts: list[Any] = [copy.copy(self.spline)]
        for coupling in self.couplings:
            parts += [transforms.Permute(self.reversal), copy.copy(coupling)]
        base = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return dist.TransformedDistribution(base, parts)


_BOUND, _BINS = 5.0, 8
_UNIT_SLOPE = math.log(math.expm1(1.0 - 1e-3))  # softplus of it, plus Pyro's 1e-3, is 1


def _spline_coupling(dim: int, hidden: Sequence[int]) -> nn.Module:
    """Build a coupling that is the identity."""
    kept = dim // 2
    network = _SplineShapes(kept, hidden, dim - kept)
    coupling = transforms.SplineCoupling(dim, kept, network, _BINS, _BOUND, identity=True)
    coupling.lower_spline = None  # of the kept half, unused: it would be a parameter without use
    return coupling


class _SplineShapes(nn.Module):
    """Widths, heights, slopes and divisions of splines, bounded so that no bin degenerates."""

    def __init__(self, n_in: int, hidden: Sequence[int], n_splines: int) -> None:
        super().__init__()
        self.sizes = [n_splines * n for n in (_BINS, _BINS, _BINS - 1, _BINS)]
        self.network = MLP(n_in, hidden, sum(self.sizes), zero_output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        shapes = 2.0 * torch.tanh(0.5 * self.network(x))
        widths, heights, slopes, divisions = shapes.split(self.sizes, dim=-1)
        return widths, heights, _UNIT_SLOPE + slopes, divisions
