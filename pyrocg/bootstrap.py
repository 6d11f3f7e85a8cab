"""The Bayesian bootstrap of weighted averages: draws of means, quantiles and log Z."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "bootstrap_means",
    "bootstrap_quantiles",
    "bootstrap_sums",
    "equal_tailed",
    "weighted_quantiles",
]

_CHUNK = 2**22  # numbers drawn at a time


def _factors(n: int, n_draws: int, seed: int) -> Iterator[Tensor]:
    """Chunks of standard exponential numbers, shape (chunk, n); their ratios are Dirichlet."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, _CHUNK // n)
    for start in range(0, n_draws, size):
        rows = min(size, n_draws - start)
        yield torch.empty(rows, n, dtype=torch.float64).exponential_(generator=generator)


def bootstrap_means(
    weights: Tensor, values: Tensor, n_draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    r"""Draw weighted means and mean weights from their Bayesian bootstrap distribution.

    .. math:: \frac{\sum_i g_i w_i f_i}{\sum_i g_i w_i}, \quad
              \frac{\sum_i g_i w_i}{\sum_i g_i}, \quad g_i \sim \mathrm{Exp}(1)

    Source: Rubin (1981), "The Bayesian bootstrap".

    Args:
        weights: :math:`w_i \ge 0`, shape ``(n,)``.
        values: :math:`f_i`, shape ``(n, m)``.
        n_draws: number of draws.
        seed: of the draws.

    Returns:
        Means, shape ``(n_draws, m)``, and mean weights, shape ``(n_draws,)``.

    Example:
        >>> import torch
        >>> means, totals = bootstrap_means(torch.ones(1000), torch.ones(1000, 1), 10, seed=0)
        >>> means.shape, bool((means == 1).all()), bool(totals.allclose(torch.ones(10).double()))
        (torch.Size([10, 1]), True, True)
    """
    w = weights.double()
    columns = torch.cat([torch.ones_like(w)[:, None], w[:, None], w[:, None] * values.double()], 1)
    sums = torch.cat([g @ columns for g in _factors(len(w), n_draws, seed)])
    return sums[:, 2:] / sums[:, 1:2], sums[:, 1] / sums[:, 0]


def weighted_quantiles(weights: Tensor, values: Tensor, probs: Tensor) -> Tensor:
    """Return the smallest value whose cumulative weight reaches each probability.

    Args:
        weights: shape ``(..., n)``.
        values: shape ``(n,)``.
        probs: shape ``(m,)``, in (0, 1).

    Returns:
        Shape ``(..., m)``.

    Example:
        >>> import torch
        >>> weighted_quantiles(torch.ones(4), torch.arange(4.0), torch.tensor([0.5])).item()
        1.0
    """
    order = values.argsort()
    cumulative = weights.double()[..., order].cumsum(-1)
    levels = probs.double().expand(*cumulative.shape[:-1], -1) * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, levels.contiguous()).clamp(max=len(values) - 1)
    return values[order][index]


def bootstrap_quantiles(
    weights: Tensor, values: Tensor, probs: Tensor, n_draws: int, seed: int
) -> Tensor:
    """Draws of weighted quantiles, shape ``(n_draws, m)``; arguments as above."""
    w = weights.double()
    chunks = _factors(len(w), n_draws, seed)
    return torch.cat([weighted_quantiles(g * w, values, probs) for g in chunks])


def bootstrap_sums(weights: Tensor, index: Tensor, n_bins: int, n_draws: int, seed: int) -> Tensor:
    """Draws of the weight in each bin, shape ``(n_draws, n_bins)``, for bins ``index`` ``(n,)``."""
    w = weights.double()
    chunks = _factors(len(w), n_draws, seed)
    return torch.cat(
        [torch.zeros(len(g), n_bins, dtype=w.dtype).index_add_(1, index, g * w) for g in chunks]
    )


def equal_tailed(draws: Tensor, level: float) -> Tensor:
    """Return the equal-tailed interval of draws ``(n_draws, ...)``, shape ``(2, ...)``."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)
    return torch.quantile(draws, tails, dim=0)
