"""The tail of a sample: how many samples it has, and what its mean may be."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["tail_mean_draws", "tail_size", "widened"]

Limits: TypeAlias = tuple[float, float]
# prior of the shape: ten samples with k = 1/2, whose k-hat has the variance (1 + k)² / 10
_SHAPE_MEAN, _SHAPE_VARIANCE = 0.5, 1.5**2 / 10
_SHAPES = (-0.99, 0.9)  # the mean of the tail is infinite from 1 on
_LOG_SCALES = (-4.0, 4.0)  # of the scale over the median, 0 to 0.7 for these shapes
_GRID = 25  # points of shape and of scale
_CLOSER = 4  # times that the grid closes in on the posterior


def tail_size(n: int) -> int:
    r"""Return how many of n weights are their tail, :math:`\lceil\min(n/5, 3\sqrt n)\rceil`.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling".

    Example:
        >>> tail_size(50), tail_size(10_000)
        (10, 300)
    """
    return math.ceil(min(n / 5, 3 * math.sqrt(n)))


def tail_mean_draws(excess: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    r"""Draw the mean of a heavy tail from its posterior, given what samples exceed a threshold by.

    .. math:: p(k, \sigma \mid x) \propto
              \mathcal N\big(k; \tfrac12, \tfrac{1.5^2}{10}\big)\, \sigma^{-1}
              \prod_i \frac1\sigma \Big(1 + \frac{k x_i}{\sigma}\Big)^{-1/k - 1}, \quad k < 0.9,
              \qquad E[x \mid k, \sigma] = \frac{\sigma}{1 - k}

    the generalised Pareto distribution, on a grid. Few samples say little about k, so the mean may
    be much larger than theirs, and hardly smaller.

    Source: Pickands (1975), "Statistical inference using extreme order statistics", for the
    distribution; Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance
    sampling", section 6, for the prior, worth ten samples with k = 1/2; Smith (1987), "Estimating
    tails of probability distributions", for the variance :math:`(1 + k)^2 / m` of k-hat from m.

    Args:
        excess: :math:`x_i > 0`, shape ``(m,)``, two or more that differ.
        n_draws: number of draws.
        generator: of the random numbers.

    Returns:
        Shape ``(n_draws,)``, float64.

    Example:
        >>> import torch
        >>> x = torch.linspace(0.01, 0.99, 99).double()
        >>> draws = tail_mean_draws(-(1 - x).log(), 2000, torch.Generator().manual_seed(0))
        >>> round(draws.mean().item(), 1)
        1.0
    """
    x = excess.double()
    unit = x.median()  # not the mean: one huge sample would move the grid away
    shapes, log_scales = _SHAPES, _LOG_SCALES
    for _ in range(_CLOSER):
        p = _posterior(x / unit, _points(shapes), _points(log_scales))
        shapes = _around(_points(shapes), p.sum(1), _SHAPES)
        log_scales = _around(_points(log_scales), p.sum(0), _LOG_SCALES)
    k, log_scale = _points(shapes), _points(log_scales)
    p = _posterior(x / unit, k, log_scale).flatten()
    means = (unit * log_scale.exp() / (1 - k[:, None])).flatten()
    return means[torch.multinomial(p, n_draws, replacement=True, generator=generator)]


def widened(draws: Tensor, excess: Tensor) -> Tensor:
    r"""Draws of a tail's mean, spread at least as the bootstrap, around at least the own mean.

    The generalised Pareto distribution does not fit every tail: of many samples near the threshold
    and a few far off it says too little, and is too sure. So draws are moved up to the mean of the
    samples, if theirs is lower, and spread out to :math:`s/\sqrt m`, if they are closer together;
    none is below 0.

    Args:
        draws: of :func:`tail_mean_draws`, shape ``(n_draws,)``.
        excess: shape ``(m,)``.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 0.0, 0.0, 4.0]).double()
        >>> widened(torch.tensor([0.4, 0.6]).double(), x).round(decimals=3).tolist()
        [0.293, 1.707]
    """
    centre, error = draws.mean(), excess.std() / math.sqrt(len(excess))
    factor = max(1.0, float(error / draws.std())) if bool(draws.std() > 0) else 1.0
    return (torch.maximum(centre, excess.mean()) + factor * (draws - centre)).clamp(min=0.0)


def _posterior(x: Tensor, shapes: Tensor, log_scales: Tensor) -> Tensor:
    """Probability of each shape, (n,), and log scale, (m,); shape (n, m)."""
    k = torch.where(shapes.abs() < 1e-6, 1e-6, shapes)[:, None]
    inside = 1 + (k / log_scales.exp())[..., None] * x
    log_p = -len(x) * log_scales - (1 + 1 / k) * inside.clamp(min=0.0).log().sum(-1)
    log_p = torch.where((inside > 0).all(-1), log_p, -torch.inf)
    log_p = log_p - 0.5 * (k - _SHAPE_MEAN).square() / _SHAPE_VARIANCE
    return torch.softmax(log_p.flatten(), 0).reshape(log_p.shape)


def _points(limits: Limits) -> Tensor:
    """Centres of equal cells: the density is cut off at the largest shape, not zero there."""
    return limits[0] + (limits[1] - limits[0]) / _GRID * (torch.arange(_GRID).double() + 0.5)


def _around(points: Tensor, p: Tensor, widest: Limits) -> Limits:
    """Five standard deviations around the mean, and a bit for the spacing."""
    mean = p @ points
    reach = 5 * (p @ (points - mean).square()).sqrt() + 1.5 * (points[1] - points[0])
    return max(widest[0], float(mean - reach)), min(widest[1], float(mean + reach))
