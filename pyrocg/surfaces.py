"""Histograms over two observables: distances, and the noise of finite samples in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyrocg.analysis import kl_divergence, total_variation

__all__ = ["SurfaceDistance", "surface_distance"]

Array: TypeAlias = NDArray[np.float64]

_DRAWS = 20  # of the histogram that an exact model would give


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances of the model's histogram over two observables from the reference's.

    Attributes:
        total_variation: see :func:`~pyrocg.analysis.total_variation`.
        kl: KL(reference || model) in nats; the model's histogram has half a count more in each bin.
        noise_total_variation: what an exact model would show, from the finite samples alone.
        noise_kl: the same for ``kl``.
    """

    total_variation: float
    kl: float
    noise_total_variation: float
    noise_kl: float


def surface_distance(
    own: list[Array],
    log_weights: Array,
    found: list[Array],
    weights: Array,
    edges: list[Array],
    seed: int,
) -> SurfaceDistance:
    r"""Compare histograms of weighted samples, and say what finite samples alone would give.

    The two halves A and B of the ladders differ by four times the variance of all of them, so
    :math:`\mathrm{TV}_{AB}/2` and :math:`\mathrm{KL}_{AB}/4` are the reference's part of the
    noise; the model's part is that of as many exact draws as its weights are worth. Variances add.
    """
    w = np.exp(log_weights - log_weights.max())
    known = _counts(own, w, edges)
    half = len(w) // 2
    a, b = (
        _counts([v[part] for v in own], w[part], edges) for part in (np.s_[:half], np.s_[half:])
    )
    n = 1.0 / float((weights**2).sum())
    n_b = float(w[half:].sum() ** 2 / (w[half:] ** 2).sum())
    rng = np.random.default_rng(seed)
    p = known.ravel() / known.sum()
    exact = [rng.multinomial(max(1, round(n)), p).astype(float) for _ in range(_DRAWS)]
    noise_tv = float(np.mean([total_variation(p, q) for q in exact]))
    noise_kl = float(np.mean([_kl(p, q, n) for q in exact]))
    histogram = _counts(found, weights, edges)
    return SurfaceDistance(
        total_variation=total_variation(known, histogram),
        kl=_kl(known, histogram, n),
        noise_total_variation=math.hypot(0.5 * total_variation(a, b), noise_tv),
        noise_kl=0.25 * _kl(a, b, n_b) + noise_kl,
    )


def _counts(values: list[Array], w: Array, edges: list[Array]) -> Array:
    first, second = (v.ravel() for v in values)
    return np.histogram2d(first, second, bins=edges, weights=w.ravel())[0]


def _kl(p: Array, q: Array, n: float) -> float:
    """KL divergence from a histogram q of n counts, with half a count more in each bin."""
    return kl_divergence(p, n * q / q.sum() + 0.5)
