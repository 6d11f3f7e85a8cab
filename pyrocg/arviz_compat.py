"""The differences between ArviZ 0.2x and 1.x, in one place. ArviZ is loaded when first used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["container", "convergence", "pareto_smooth", "resampled_chains"]


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


def resampled_chains(
    variables: Mapping[str, NDArray[Any]],
    statistics: Mapping[str, NDArray[Any]],
    chain: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    num_draws: int,
    units: Mapping[str, str],
    constants: Mapping[str, float],
    attributes: Mapping[str, Any],
    observed: Mapping[str, ArrayLike],
    seed: int,
) -> Any:
    """Return ArviZ's container of weighted samples, resampled by their weights in each chain.

    Resampling is systematic: a sample with the share w of its chain comes floor or ceil of w times
    the draws. The order is random. Source: Douc and Cappé (2005), "Comparison of resampling
    schemes for particle filtering".

    Args:
        variables: of the group ``posterior``, shape ``(n, ...)`` each; the second dimension of
            "z" is named ``cv``, with coordinates ``z1``, ``z2``, ...
        statistics: of the group ``sample_stats``, shape ``(n,)`` each; ``index`` is added.
        chain: of every sample, shape ``(n,)``, from 0.
        weights: shape ``(n,)``, not negative.
        num_draws: number of draws of all chains together.
        units: of variables and statistics, as their attribute ``units``.
        constants: of the group ``constant_data``.
        attributes: of the group ``posterior``.
        observed: known samples of variables, all of one length; if there are any, the groups are
            ``observed_data`` and ``posterior_predictive``, where each chain is a replicate.
        seed: of the resampling.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.

    Raises:
        ValueError: no draw is left for a chain, or a chain has no weight.
    """
    n_chains = int(chain.max()) + 1
    if num_draws < n_chains:
        raise ValueError(f"expected num_draws of at least {n_chains}, a chain's, got {num_draws}")
    random = np.random.default_rng(seed)
    rows = [
        _resampled(np.where(chain == c, weights, 0.0), num_draws // n_chains, random)
        for c in range(n_chains)
    ]
    index = np.stack(rows)
    dims = {name: ("cv",) if name == "z" and v.ndim == 2 else () for name, v in variables.items()}
    posterior = _dataset({name: v[index] for name, v in variables.items()}, units, dims)
    if "cv" in posterior.dims:
        posterior = posterior.assign_coords(cv=[f"z{i + 1}" for i in range(posterior.sizes["cv"])])
    posterior.attrs.update(attributes, inference_library="pyrocg")
    drawn = {name: v[index] for name, v in statistics.items()} | {"index": index}
    groups = {"posterior": posterior, "sample_stats": _dataset(drawn, units, {})}
    groups["constant_data"] = _dataset(constants, units, {}, sample_dims=())
    if observed:
        names = dict.fromkeys(observed, ("configuration",))
        replicas = {name: variables[name][index][None] for name in observed}
        known = {name: np.asarray(v) for name, v in observed.items()}
        groups["posterior_predictive"] = _dataset(replicas, units, names)
        groups["observed_data"] = _dataset(known, units, names, sample_dims=())
    return container(groups)


def _resampled(
    weights: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.int64]:
    total = weights.sum()
    if not total > 0:
        raise ValueError("expected weight in every chain, got one without; train the model longer")
    steps = (np.arange(count) + random.uniform()) / count
    index = np.searchsorted(weights.cumsum() / total, steps, side="right")
    return random.permutation(index.clip(max=len(weights) - 1))


def _dataset(
    variables: Mapping[str, Any],
    units: Mapping[str, str],
    dims: Mapping[str, tuple[str, ...]],
    sample_dims: tuple[str, ...] = ("chain", "draw"),
) -> Any:
    """An ``xarray.Dataset`` of variables (chain, draw, ...) with their units."""
    import xarray

    arrays = {}
    for name, value in variables.items():
        own = dims.get(name, ())
        rest = np.ndim(value) - len(sample_dims) - len(own)
        names = (*sample_dims, *own, *(f"{name}_dim_{i}" for i in range(rest)))
        attributes = {"units": units[name]} if units.get(name) else {}
        arrays[name] = xarray.DataArray(value, dims=names, attrs=attributes)
    found = xarray.Dataset(arrays)
    return found.assign_coords({d: np.arange(found.sizes[d]) for d in sample_dims if arrays})


def container(groups: Mapping[str, Any]) -> Any:
    """Return ArviZ's container: ``InferenceData`` in 0.x, an ``xarray.DataTree`` in 1.x.

    Args:
        groups: group name to ``xarray.Dataset``.
    """
    arviz = _arviz()
    if _is_legacy(arviz):
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict(dict(groups))


def convergence(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return R-hat and bulk ESS of values ``(n_chains, n_records)``; NaN where they say nothing.

    R-hat is huge or infinite where chains differ and stand still.
    """
    if values.shape[1] < 4 or np.ptp(values) == 0:
        return math.nan, math.nan
    arviz = _arviz()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(arviz.rhat(values)), float(arviz.ess(values))
