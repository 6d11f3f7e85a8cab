"""The Bayesian bootstrap of weighted samples in strata: draws of sums, means and quantiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrocg.tails import tail_mean_draws, tail_size, widened

__all__ = [
    "Bootstrap",
    "Replicates",
    "Tail",
    "bootstrap_factors",
    "equal_tailed",
    "heavy_tails",
    "highest_density",
    "merged_strata",
    "mixed_seed",
    "random_stream",
    "weighted_quantiles",
]

_CHUNK = 2**22  # numbers drawn at a time
_LEAST = 25  # samples of a stratum: its variance is not known from fewer


def mixed_seed(seed: int, number: int) -> int:
    """Return a seed of random numbers that no other number, nor the seed itself, gives.

    0: the bootstrap. 1: the spread of groups. 2: tails. 3: annealing.
    4: samples of the trained weights. 5: draws of posteriors.
    """
    return int(np.random.SeedSequence([seed % 2**63, number]).generate_state(1)[0])


def random_stream(seed: int, number: int) -> torch.Generator:
    """Return a generator that is seeded by :func:`mixed_seed`.

    Samples are drawn with the seed itself; factors from the same stream would know them.
    """
    return torch.Generator().manual_seed(mixed_seed(seed, number))


def bootstrap_factors(group: Tensor, n_draws: int, seed: int) -> Iterator[Tensor]:
    r"""Draw factors of the Bayesian bootstrap, within groups whose sizes are fixed.

    .. math:: g_i = n_s \frac{e_i}{\sum_{j \in s} e_j}, \quad e_i \sim \mathrm{Exp}(1)

    so that the factors of each group s are :math:`n_s` times a uniform draw from the simplex.

    Source: Rubin (1981), "The Bayesian bootstrap", applied to each group.

    Args:
        group: of every sample, shape ``(n,)``, from 0.
        n_draws: number of draws.
        seed: of the draws; the global generator is left alone.

    Yields:
        Chunks of shape ``(rows, n)``, together ``n_draws`` rows.

    Example:
        >>> import torch
        >>> (factors,) = bootstrap_factors(torch.tensor([0, 0, 1]), 4, seed=0)
        >>> bool(factors[:, :2].sum(1).allclose(torch.full((4,), 2.0).double()))
        True
    """
    n = len(group)
    sizes = torch.bincount(group).double()
    generator = random_stream(seed, 0)
    rows = max(1, _CHUNK // n)
    for start in range(0, n_draws, rows):
        shape = (min(rows, n_draws - start), n)
        e = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
        totals = torch.zeros(len(e), len(sizes), dtype=e.dtype).index_add_(1, group, e)
        yield e * (sizes / totals)[:, group]


@dataclass(frozen=True)
class Replicates:
    """A statistic of groups of samples, and its bootstrap draws.

    Attributes:
        observed: of each group, shape ``(n_groups, m)``.
        draws: shape ``(n_draws, n_groups, m)``.
    """

    observed: Tensor
    draws: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Replicates:
        """Return a function of the statistic, applied along its last dimension."""
        return Replicates(function(self.observed), function(self.draws))

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Return sums over the groups, shapes ``(m,)`` and ``(n_draws, m)``."""
        return self.observed.sum(0), self.draws.sum(1)


@dataclass(frozen=True)
class Tail:
    """The samples of a component with the largest weights, and draws of their mean weight.

    Attributes:
        index: of the samples, shape ``(m,)``.
        means: shape ``(n_draws,)``.
    """

    index: Tensor
    means: Tensor


def heavy_tails(weights: Tensor, component: Tensor, n_draws: int, seed: int) -> tuple[Tail, ...]:
    r"""Return the tails of the weights of every component that has enough samples.

    Few samples miss the largest weights of a heavy tail, and with them most of the variance. So
    the excess over a threshold is taken as generalised Pareto with unknown parameters, see
    :func:`pyrocg.tails.tail_mean_draws`, and their mean as uncertain as the bootstrap says, or
    more, see :func:`pyrocg.tails.widened`. The mean of such draws moves the weight of a component
    away from that of its samples, by :math:`b_c`. If the distribution does not fit, it moves all
    components the same way, while their errors cancel. So a common factor makes them b' with

    .. math:: \left|\sum_c b'_c\right| \le \left(\sum_c b_c^2\right)^{1/2}:

    all together are moved no further than their errors would be, if each were by itself.

    Args:
        weights: :math:`w_i \ge 0`, shape ``(n,)``.
        component: of every sample, shape ``(n,)``, from 0.
        n_draws: number of draws.
        seed: of the draws.

    Example:
        >>> import torch
        >>> w = torch.linspace(-2.0, 2.0, 400).exp()
        >>> (tail,) = heavy_tails(w, torch.zeros(400, dtype=torch.long), 500, seed=0)
        >>> len(tail.index), tail.means.shape
        (60, torch.Size([500]))
    """
    w, generator = weights.double(), random_stream(seed, 2)
    found = []
    for k in component.unique():
        own = torch.nonzero((component == k) & (w > 0))[:, 0]
        if len(own) < _LEAST:
            continue
        own = own[w[own].argsort()]
        threshold = w[own[-tail_size(len(own)) - 1]]
        own = own[w[own] > threshold]  # fewer, where weights are equal
        if len(own) < 2 or float(w[own[-1]] - w[own[0]]) < 1e-10 * float(w[own[-1]]):
            continue
        excess = w[own] - threshold
        draws = widened(tail_mean_draws(excess, n_draws, generator), excess)
        found.append(Tail(own, threshold + draws))
    return _moved_no_further(found, w)


def _moved_no_further(tails: Sequence[Tail], weights: Tensor) -> tuple[Tail, ...]:
    """Tails whose weights are together moved by no more than the root of the sum of squares."""
    if not tails:
        return ()
    drawn = torch.stack([len(tail.index) * tail.means.mean() for tail in tails])
    moved = drawn - torch.stack([weights[tail.index].sum() for tail in tails])
    total = moved.sum()
    excess = total - total.clamp(-moved.norm(), moved.norm())
    factor = 1 - excess / drawn.sum()
    return tuple(Tail(tail.index, factor * tail.means) for tail in tails)


def merged_strata(group: Tensor, component: Tensor) -> Tensor:
    """Return a number for each group and component; small components of a group share one.

    Components of fewer than 25 samples share a stratum that has at least as many, if the group has:
    there, which component a sample is of counts as random.

    Args:
        group: of every sample, shape ``(n,)``.
        component: likewise, from 0.

    Returns:
        Shape ``(n,)``, from 0.

    Example:
        >>> import torch
        >>> component = torch.tensor([0] * 40 + [1] * 30 + [2] * 5)
        >>> torch.bincount(merged_strata(torch.zeros(75, dtype=torch.long), component)).tolist()
        [40, 35]
    """
    n_components = int(component.max()) + 1
    cells, cell, sizes = (group * n_components + component).unique(
        return_inverse=True, return_counts=True
    )
    number = torch.arange(len(cells))
    for g in (cells // n_components).unique():
        own = torch.nonzero(cells // n_components == g)[:, 0]
        own = own[sizes[own].argsort()]
        before = sizes[own].cumsum(0) - sizes[own]
        joined = own[(sizes[own] < _LEAST) | ((before > 0) & (before < _LEAST))]
        number[joined] = joined.min() if len(joined) else 0
    return number[cell].unique(return_inverse=True)[1]


@dataclass(frozen=True)
class Bootstrap:
    r"""The Bayesian bootstrap of weighted samples in groups, for instance one for each decoder.

    Args:
        weights: :math:`w_i \ge 0`, shape ``(n,)``.
        group: of every sample, shape ``(n,)``, in ascending order from 0.
        n_draws: number of draws.
        seed: of the draws.
        stratum: of every sample, shape ``(n,)``, from 0, within its group: samples whose number was
            fixed. Default: the group.
        tails: of the weights, with n_draws draws each or more.
        component: of every sample, shape ``(n,)``, from 0; needed with ``shares``.
        shares: draws of a factor for each component, shape ``(n_draws or more, n_components)``.

    Example:
        >>> import torch
        >>> one = torch.zeros(1000, dtype=torch.long)
        >>> found = Bootstrap(torch.ones(1000), one, 10, seed=0).sums(torch.ones(1000, 1))
        >>> found.observed, found.draws.shape
        (tensor([[1000.]], dtype=torch.float64), torch.Size([10, 1, 1]))
    """

    weights: Tensor
    group: Tensor
    n_draws: int
    seed: int
    stratum: Tensor | None = None
    tails: tuple[Tail, ...] = ()
    component: Tensor | None = None
    shares: Tensor | None = None

    @property
    def strata(self) -> Tensor:
        """Stratum of every sample, shape ``(n,)``."""
        return self.group if self.stratum is None else self.stratum

    def relative_totals(self, component: Tensor) -> Tensor:
        """Draws of each component's weight over their mean, ``(n_draws, n_components)``.

        Their mean, not the observed weight, which a heavy tail leaves behind: what these factors
        multiply stays where it is.
        """
        size = int(component.max()) + 1
        weights = self.weights.double()

        def total(g: Tensor) -> Tensor:
            found = torch.zeros(len(g), size, dtype=g.dtype)
            return found.index_add_(1, component, g * weights)[:, None]

        draws = self._replicates(total).draws[:, 0]
        mean = draws.mean(0)
        return torch.where(mean > 0, draws / mean, 1.0)

    def sums(self, columns: Tensor) -> Replicates:
        r"""Weighted sums :math:`\sum_i g_i w_i f_i` of each group, for f of shape ``(n, m)``."""
        parts = self._split(self.weights.double()[:, None] * columns.double(), 0)

        def total(g: Tensor) -> Tensor:
            return torch.stack(
                [own @ p for own, p in zip(self._split(g, 1), parts, strict=True)], 1
            )

        return self._replicates(total)

    def counts(self, index: Tensor, n_bins: int) -> Replicates:
        """Weight in each bin, for bins ``index`` of shape ``(n,)``; -1 is no bin."""
        n_groups, kept = len(self._sizes), index >= 0
        place = (self.group * n_bins + index)[kept]
        weights = self.weights.double()[kept]

        def total(g: Tensor) -> Tensor:
            found = torch.zeros(len(g), n_groups * n_bins, dtype=g.dtype)
            return found.index_add_(1, place, g[:, kept] * weights).unflatten(1, (n_groups, n_bins))

        return self._replicates(total)

    def quantiles(self, values: Tensor, probs: Tensor) -> tuple[Replicates, Replicates]:
        """Quantiles of each group, and of all samples as one group, for values ``(n,)``."""
        w = self.weights.double()
        parts = self._split(values, 0)

        def total(g: Tensor) -> Tensor:
            pairs = zip(self._split(g * w, 1), parts, strict=True)
            each = [weighted_quantiles(own, v, probs) for own, v in pairs]
            pooled = each if len(each) == 1 else [weighted_quantiles(g * w, values, probs)]
            return torch.stack([*each, *pooled], 1)

        found = self._replicates(total)
        return (
            Replicates(found.observed[:-1], found.draws[:, :-1]),
            Replicates(found.observed[-1:], found.draws[:, -1:]),
        )

    @property
    def _sizes(self) -> list[int]:
        return torch.bincount(self.group).tolist()

    def _split(self, tensor: Tensor, dim: int) -> tuple[Tensor, ...]:
        return tensor.split(self._sizes, dim)

    def _replicates(self, total: Callable[[Tensor], Tensor]) -> Replicates:
        """A statistic of the samples as they are, and of every draw of factors."""
        observed = total(torch.ones(1, len(self.weights), dtype=torch.float64))[0]
        draws, start = [], 0
        for factors in bootstrap_factors(self.strata, self.n_draws, self.seed):
            rows = slice(start, start + len(factors))
            draws.append(total(self._adjusted(factors, rows)))
            start = rows.stop
        return Replicates(observed, torch.cat(draws))

    def _adjusted(self, factors: Tensor, rows: slice) -> Tensor:
        """Factors that give tails their drawn means and components their drawn shares."""
        weights = self.weights.double()
        for tail in self.tails:
            own = factors[:, tail.index]
            mean = own @ weights[tail.index] / own.sum(1)
            factors[:, tail.index] = own * (tail.means[rows] / mean)[:, None]
        if self.shares is not None and self.component is not None:
            factors = factors * self.shares[rows][:, self.component]
        return factors


def weighted_quantiles(weights: Tensor, values: Tensor, probs: Tensor) -> Tensor:
    """Return the smallest value whose cumulative weight reaches each probability.

    Args:
        weights: shape ``(..., n)``.
        values: shape ``(n,)``.
        probs: shape ``(m,)``, in (0, 1).

    Returns:
        Shape ``(..., m)``; NaN where all weights are zero.

    Example:
        >>> import torch
        >>> weighted_quantiles(torch.ones(4), torch.arange(4.0), torch.tensor([0.5])).item()
        1.0
    """
    order = values.argsort()
    cumulative = weights.double()[..., order].cumsum(-1)
    levels = probs.double().expand(*cumulative.shape[:-1], -1) * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, levels.contiguous()).clamp(max=len(values) - 1)
    return torch.where(cumulative[..., -1:] > 0, values.double()[order][index], torch.nan)


def equal_tailed(draws: Tensor, level: float) -> Tensor:
    """Return the equal-tailed interval of draws ``(n_draws, ...)``, shape ``(2, ...)``."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)
    return torch.quantile(draws, tails, dim=0)


def highest_density(draws: Tensor, level: float) -> Tensor:
    """Return the narrowest interval that holds a share of draws ``(n_draws, ...)``.

    Example:
        >>> import torch
        >>> highest_density(torch.tensor([0.0, 1.0, 1.1, 1.2, 9.0]), 0.6)
        tensor([1.0000, 1.2000])
    """
    ordered = draws.sort(0).values
    inside = min(max(1, round(level * len(draws))), len(draws))  # draws within the interval
    low, high = ordered[: len(draws) - inside + 1], ordered[inside - 1 :]
    start = (high - low).argmin(0, keepdim=True)
    return torch.cat([low.gather(0, start), high.gather(0, start)])
