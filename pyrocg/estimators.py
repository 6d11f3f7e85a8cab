"""Estimators: weighted samples in, estimates with intervals out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.bootstrap import Bootstrap, Replicates, equal_tailed
from pyrocg.estimates import Estimate, Histogram, Uncertainty, equal_weight_fraction, uncertainty
from pyrocg.observables import Observable

__all__ = ["WeightedSample", "bin_edges", "bin_index"]

_HISTOGRAM_DRAWS = 200  # enough for a band, and a histogram has many bins


@dataclass(frozen=True)
class WeightedSample:
    """Weighted samples in groups, one for each decoder, and how to estimate from them.

    Args:
        bootstrap: weights and groups of the n samples.
        level: of the intervals.
        shared_truth: whether all groups estimate the same value: with importance weights they do,
            the own averages of different decoders do not.
    """

    bootstrap: Bootstrap
    level: float
    shared_truth: bool

    def means(self, observables: Sequence[Observable], values: Sequence[Tensor]) -> list[Estimate]:
        """Average observables, all on the same draws; angles by their mean cosine and sine.

        Args:
            observables: m of them, one or more.
            values: of each, shape ``(n,)``.
        """
        circular = torch.tensor([o.circular for o in observables])
        reached = self.bootstrap.weights[:, None] > 0  # NaN of a sample without weight says nothing
        table = torch.where(reached, torch.stack(list(values), 1).double(), 0.0)
        pairs = torch.where(circular, table.cos(), table), table.sin()
        columns = torch.cat([torch.ones_like(table[:, :1]), *pairs], 1)

        def average(sums: Tensor) -> Tensor:
            x, y = (sums[..., 1:] / sums[..., :1]).chunk(2, -1)
            return torch.where(circular, torch.atan2(y, x), x)

        sums = self.bootstrap.sums(columns)
        centre, draws = (average(s) for s in sums.pooled())
        away = table - centre
        influence = torch.where(circular, away.sin(), away)
        found = self._uncertainty(
            centre,
            draws,
            sums.map(average),
            self._fraction(influence),
            _limits(table),
            circular,
        )
        return self._estimates(centre, found, [o.unit for o in observables])

    def quantiles(self, values: Tensor, probs: Tensor, unit: str) -> list[Estimate]:
        """Quantiles of one observable.

        Args:
            values: shape ``(n,)``.
            probs: shape ``(m,)``, in (0, 1).
            unit: of the values.
        """
        groups, pooled = self.bootstrap.quantiles(values, probs)
        centre, draws = pooled.pooled()
        influence = (values[:, None] <= centre).double() - probs
        fraction = self._fraction(influence)
        limits = _limits(values[:, None].expand(-1, len(probs)))
        found = self._uncertainty(centre, draws, groups, fraction, limits)
        return self._estimates(centre, found, [unit] * len(probs))

    def free_energy_difference(self, first: Tensor, second: Tensor, kt: float) -> Estimate:
        r"""Free energy of the second state over that of the first, :math:`-k_B T \log(p_2/p_1)`.

        The spread of groups enters to first order in the populations.

        Args:
            first: which samples are in it, shape ``(n,)``.
            second: likewise.
            kt: thermal energy in kJ/mol.
        """
        states = torch.stack([first, second], 1).double()
        sums = self.bootstrap.sums(torch.cat([torch.ones_like(states[:, :1]), states], 1))
        total, drawn = sums.pooled()
        p = total[1:] / total[0]

        def difference(s: Tensor) -> Tensor:
            return -kt * (s[..., 2:].log() - s[..., 1:2].log())

        def linear(s: Tensor) -> Tensor:
            relative = s[..., 1:] / s[..., :1] / p
            return difference(total) - kt * (relative[..., 1:] - relative[..., :1])

        fraction = self._fraction((states / p) @ torch.tensor([[-1.0], [1.0]]).double())
        found = self._uncertainty(
            difference(total),
            difference(drawn),
            sums.map(linear),
            fraction,
            (torch.full((1,), -torch.inf).double(), torch.full((1,), torch.inf).double()),
        )
        return self._estimates(difference(total), found, ["kJ/mol"])[0]

    def histogram(self, edges: tuple[NDArray[np.float64], ...], index: Tensor) -> Histogram:
        """Density over bins of equal size, among the samples that are in one.

        Args:
            edges: of the bins of each observable.
            index: flat index of each sample's bin, shape ``(n,)``; -1 outside of all.
        """
        shape = [len(edge) - 1 for edge in edges]
        n_draws = min(self.bootstrap.n_draws, _HISTOGRAM_DRAWS)
        sums = replace(self.bootstrap, n_draws=n_draws).counts(index, math.prod(shape))

        def density(s: Tensor) -> Tensor:
            return s / s.sum(-1, keepdim=True)

        p, draws = (density(s) for s in sums.pooled())
        limits = (torch.zeros_like(p), torch.ones_like(p))
        fraction = self._bin_fraction(index, p)
        found = self._uncertainty(p, draws, sums.map(density), fraction, limits, positive=True)
        volume = math.prod(float(edge[1] - edge[0]) for edge in edges)
        parts = (p, *equal_tailed(found.draws, self.level), *found[1:])
        return Histogram(edges, *((part / volume).reshape(shape).numpy() for part in parts))

    def _fraction(self, influence: Tensor) -> Tensor:
        """:func:`equal_weight_fraction` of influences, shape ``(n, m)``."""
        return equal_weight_fraction(self.bootstrap.weights, influence, self.bootstrap.strata)

    def _bin_fraction(self, index: Tensor, p: Tensor) -> Tensor:
        """The same of bins, whose influence is 1 - p inside, -p in others and 0 outside of all."""
        w, stratum = self.bootstrap.weights.double(), self.bootstrap.strata
        inside, counts = index >= 0, torch.bincount(stratum).double()

        def sums(values: Tensor) -> tuple[Tensor, Tensor]:
            """Of each stratum and bin, and of each stratum within all bins."""
            found = torch.zeros(len(counts), len(p), dtype=values.dtype)
            found.index_put_((stratum[inside], index[inside]), values[inside], accumulate=True)
            return found, found.sum(1, keepdim=True)

        (own, every), (own_square, every_square) = sums(w), sums(w.square())
        total = torch.zeros_like(counts).index_add_(0, stratum, w)[:, None]
        first = (own - p * every).square() / counts[:, None]
        ideal = total * (own * (1 - 2 * p) + p.square() * every) / counts[:, None] - first
        found = own_square * (1 - 2 * p) + p.square() * every_square - first
        return ideal.sum(0) / found.sum(0)

    def _uncertainty(
        self,
        centre: Tensor,
        draws: Tensor,
        groups: Replicates,
        fraction: Tensor,
        limits: tuple[Tensor, Tensor],
        circular: Tensor | None = None,
        positive: bool = False,
    ) -> Uncertainty:
        return uncertainty(
            centre,
            draws,
            groups,
            fraction,
            shared_truth=self.shared_truth,
            limits=limits,
            seed=self.bootstrap.seed,
            circular=circular,
            positive=positive,
        )

    def _estimates(
        self, centre: Tensor, found: Uncertainty, units: Sequence[str]
    ) -> list[Estimate]:
        bounds = equal_tailed(found.draws, self.level).T.tolist()
        parts = torch.stack(found[1:], 1).tolist()
        rows = zip(centre.tolist(), bounds, units, parts, found.draws.T.numpy(), strict=True)
        return [
            Estimate(mean, (low, high), self.level, unit, posterior, monte_carlo, weights, draws)
            for mean, (low, high), unit, (posterior, monte_carlo, weights), draws in rows
        ]


def _limits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest possible averages of values (n, m): 0 and 1 for populations, else none."""
    population = ((values == 0) | (values == 1)).all(0)
    highest = torch.full_like(values[0], torch.inf, dtype=torch.float64)
    return torch.where(population, 0.0, -highest), torch.where(population, 1.0, highest)


def bin_edges(
    values: NDArray[np.float64], circular: bool, bins: int, limits: tuple[float, float] | None
) -> NDArray[np.float64]:
    """Return the edges of equal bins: default -π to π for angles, else all values."""
    if limits is None:
        limits = (-math.pi, math.pi) if circular else (values.min(), values.max())
        if limits[0] == limits[1]:  # all the same: a bar of width 1
            limits = (limits[0] - 0.5, limits[1] + 0.5)
    return np.linspace(*limits, bins + 1)


def bin_index(
    values: NDArray[np.float64], circular: bool, edges: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the bin of every value, -1 outside; angles may be any turn away."""
    bins = len(edges) - 1
    if circular:
        values = edges[0] + (values - edges[0]) % (2 * math.pi)
    place = np.searchsorted(edges, values, side="right") - 1
    place[values == edges[-1]] = bins - 1
    return np.where(place < bins, place, -1)
