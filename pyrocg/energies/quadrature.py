"""Integrals of exp(-U) on a line and over a square, by Gauss-Legendre quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["NEGLIGIBLE", "log_integral", "panels", "reach"]

NEGLIGIBLE = 80.0
"""exp(-80) of the peak density: below it a tail no longer counts in double precision."""


def reach(section: Callable[[Tensor], Tensor], scale: float) -> float:
    """Half-width of the interval around 0 outside which exp(-scale U) is negligible."""
    half = 1.0
    for _ in range(200):
        energy = scale * section(torch.linspace(-half, half, 2001, dtype=torch.float64))
        if float(torch.minimum(energy[0], energy[-1]) - energy.min()) > NEGLIGIBLE:
            return half
        half *= 1.25
    raise ValueError(f"expected a potential that confines at t * beta = {scale}")


def panels(lower: float, upper: float, n_panels: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of composite quadrature on an interval, 16 nodes a panel."""
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
    edge = torch.linspace(lower, upper, n_panels + 1, dtype=torch.float64)
    half = 0.5 * (edge[1:] - edge[:-1]).unsqueeze(-1)
    nodes = edge[:-1].unsqueeze(-1) + half * (node + 1)
    return nodes.flatten(), (half * weight).flatten()


def log_integral(
    energy: Callable[[Tensor], Tensor],
    dim: int,
    scale: float,
    lower: float,
    upper: float,
    n_panels: int,
) -> float:
    """Log of the integral of exp(-scale U) over the box (lower, upper)^dim, dim 1 or 2."""
    nodes, weights = panels(lower, upper, n_panels)
    log_weights = weights.log()
    if dim == 1:
        return float(torch.logsumexp(log_weights - scale * energy(nodes[:, None]), 0))
    parts = []
    for x1, log_weight in zip(nodes.split(32), log_weights.split(32), strict=True):  # less memory
        points = torch.cartesian_prod(x1, nodes)
        log_weight_2d = (log_weight[:, None] + log_weights).flatten()
        parts.append(torch.logsumexp(log_weight_2d - scale * energy(points), 0))
    return float(torch.logsumexp(torch.stack(parts), 0))
