"""Comparisons of distributions: arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["free_energy", "kl_divergence", "total_variation"]


def _normalised(density: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(density, dtype=np.float64)
    if p.size == 0 or not np.isfinite(p).all() or (p < 0).any() or not p.sum() > 0:
        raise ValueError(
            "expected a histogram of finite, non-negative numbers that are not all zero, got "
            f"shape {p.shape} with sum {p.sum()}"
        )
    return p / p.sum()


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _normalised(p), _normalised(q)
    if first.shape != second.shape:
        raise ValueError(
            f"expected two histograms on the same bins, got shapes {first.shape} and {second.shape}"
        )
    return first, second


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    r"""Total variation distance of two histograms, :math:`\frac12 \sum_i |p_i - q_i|`.

    Args:
        p: counts or densities in equal bins, any shape; normalised here.
        q: the other, in the same bins.

    Raises:
        ValueError: shapes differ, or a histogram is empty, negative or not finite.

    Example:
        >>> total_variation([1, 1, 0], [0, 1, 1])
        0.5
    """
    first, second = _pair(p, q)
    return float(0.5 * np.abs(first - second).sum())


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    r"""Kullback-Leibler divergence of two histograms, :math:`\sum_i p_i \log(p_i / q_i)`, in nats.

    Infinite where q has an empty bin that p has not. Arguments and errors as
    :func:`total_variation`.

    Example:
        >>> round(kl_divergence([1, 1], [1, 3]), 4)
        0.1438
    """
    first, second = _pair(p, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(first > 0, first * np.log(first / second), 0.0)
    return float(terms.sum())


def free_energy(density: ArrayLike, kt: float) -> NDArray[np.float64]:
    r"""Free energy :math:`-k_B T \log p`, zero at the most populated bin, infinite in empty ones.

    Args:
        density: counts or densities in equal bins, any shape.
        kt: thermal energy, in the unit of the result (kJ/mol).

    Example:
        >>> free_energy([1.0, np.e], kt=2.5).tolist()
        [2.5, 0.0]
    """
    p = _normalised(density)
    with np.errstate(divide="ignore"):
        return kt * (np.log(p.max()) - np.log(p))
