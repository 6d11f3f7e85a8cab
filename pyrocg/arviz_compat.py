"""The differences between ArviZ 0.2x and 1.x, in one place. ArviZ is loaded when first used."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["inference_data", "pareto_smooth"]


def _arviz() -> Any:
    """Load ArviZ without the notice of its 0.23 that 1.0 is to come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _is_legacy(arviz: Any) -> bool:
    return arviz.__version__.startswith("0.")  # 1.x still answers to some of the old names


def pareto_smooth(log_weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Pareto-smooth log importance weights.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling".

    Args:
        log_weights: shape ``(n,)``; minus infinity for weight 0.

    Returns:
        Smoothed log weights, up to a constant, and k-hat; infinity if too few are finite.

    Example:
        >>> import numpy as np
        >>> smoothed, k = pareto_smooth(np.random.default_rng(0).normal(size=1000))
        >>> smoothed.shape, k < 0.7
        ((1000,), True)
    """
    finite = np.isfinite(log_weights)
    smoothed = np.full(log_weights.shape, -np.inf)
    if finite.sum() < 25:
        smoothed[finite] = log_weights[finite]
        return smoothed, float("inf")
    values = np.ascontiguousarray(log_weights[finite], dtype=np.float64)
    if np.ptp(values) < 1e-10:
        smoothed[finite] = 0.0
        return smoothed, float("-inf")
    smoothed[finite], k = _psislw(values)
    return smoothed, float(k)


def _psislw(log_weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    arviz = _arviz()
    if _is_legacy(arviz):
        smoothed, k = arviz.psislw(log_weights)
        return np.asarray(smoothed), float(k)
    from arviz_stats.base import array_stats

    smoothed, k = array_stats.psislw(-log_weights)  # takes log likelihoods
    return np.asarray(smoothed), float(k)


def inference_data(groups: dict[str, dict[str, Any]], attrs: dict[str, Any], **options: Any) -> Any:
    """Return ArviZ's container: ``InferenceData`` in 0.x, an ``xarray.DataTree`` in 1.x.

    Args:
        groups: group name to variable name to array ``(chain, draw, ...)``.
        attrs: attributes of the posterior group.
        options: ``coords`` and ``dims`` of ``arviz.from_dict``.
    """
    arviz = _arviz()
    if _is_legacy(arviz):
        data = arviz.from_dict(**groups, **options)
    else:
        data = arviz.from_dict(groups, **options)
    data["posterior"].attrs.update(attrs)
    return data
