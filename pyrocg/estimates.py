r"""Estimates with intervals, and where their uncertainty comes from.

Three parts are kept apart, for a prediction that pools the samples of D decoders, draws from a
posterior over the decoder's weights:

- **posterior**: the spread of the decoders' own averages :math:`a_d`. Their observed variance
  holds Monte Carlo noise too, so :math:`\tau^2 = \max(0, S^2 - \bar v)` with :math:`S^2` the
  variance of the :math:`a_d` and :math:`\bar v` the mean variance of one of them. Another draw
  differs from the mean of D by :math:`\tau^2 (1 + 1/D)`. Importance-corrected averages have one
  truth for all decoders; disagreement beyond noise gives their mean an error of
  :math:`\tau^2 / D`.
- **monte_carlo**: the error that as many samples of equal weight would have.
- **weights**: what unequal weights add to it.

The last two together are the variance of the Bayesian bootstrap. The sum of the three is the total
variance. How much smaller the variance would be with equal weights: see
:func:`equal_weight_fraction`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.bootstrap import Replicates, equal_tailed, highest_density, random_stream
from pyrocg.distributions import wrap

__all__ = [
    "Estimate",
    "FreeEnergySurface",
    "Histogram",
    "Uncertainty",
    "equal_weight_fraction",
    "uncertainty",
]

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["equal_tailed", "highest_density"]
_INTERVALS = {"equal_tailed": equal_tailed, "highest_density": highest_density}


@dataclass(frozen=True)
class Estimate:
    """An equilibrium average, a quantile or a free-energy difference.

    Attributes:
        mean: the value; for an angle the circular mean, in rad.
        interval: equal-tailed credible interval.
        level: probability that the interval holds.
        unit: of all of them.
        posterior: standard deviation that comes from not knowing the decoder's weights.
        monte_carlo: standard deviation that as many samples of equal weight would have.
        weights: standard deviation that unequal weights add.
        draws: draws of the value, shape ``(n_draws,)``, which the interval is of.

    Example:
        >>> import numpy as np
        >>> made = Estimate(1.0, (0.8, 1.2), 0.95, "nm", 0.0, 0.1, 0.0, np.linspace(0.0, 2.0, 101))
        >>> made.credible_interval(0.5)
        (0.5, 1.5)
    """

    mean: float
    interval: tuple[float, float]
    level: float
    unit: str
    posterior: float
    monte_carlo: float
    weights: float
    draws: Array = field(repr=False, compare=False)

    @property
    def standard_deviation(self) -> float:
        """Of all three parts together."""
        return math.hypot(self.posterior, self.monte_carlo, self.weights)

    def credible_interval(self, level: float, kind: Kind = "equal_tailed") -> tuple[float, float]:
        """Return the interval that holds with another probability, or of another kind.

        Args:
            level: probability that it holds.
            kind: ``"equal_tailed"``, or ``"highest_density"`` for the narrowest.

        Raises:
            ValueError: ``level`` is not between 0 and 1, or ``kind`` is another word.
        """
        if not 0 < level < 1 or kind not in _INTERVALS:
            raise ValueError(
                f"expected a level between 0 and 1 and one of {', '.join(_INTERVALS)}, "
                f"got {level} and {kind!r}"
            )
        low, high = _INTERVALS[kind](torch.from_numpy(self.draws), level).tolist()
        return low, high


@dataclass(frozen=True)
class Histogram:
    """A probability density over one or two observables.

    Attributes:
        edges: bin edges of each observable.
        density: shape ``(n_bins,)`` or ``(n_bins, n_bins)``; integrates to 1 over the range.
        lower: lower end of each bin's interval.
        upper: upper end of each bin's interval.
        posterior: standard deviation of each bin that comes from the decoder's weights.
        monte_carlo: that as many samples of equal weight would have.
        weights: that unequal weights add.
    """

    edges: tuple[Array, ...]
    density: Array
    lower: Array
    upper: Array
    posterior: Array
    monte_carlo: Array
    weights: Array


@dataclass(frozen=True)
class FreeEnergySurface:
    r"""A free energy :math:`-k_B T \log p` over one or two observables, in kJ/mol.

    Attributes:
        edges: bin edges of each observable.
        energy: shape ``(n_bins,)`` or ``(n_bins, n_bins)``; zero in the most populated bin,
            infinite in bins without samples.
        lower: lower end of each bin's interval; NaN in bins without samples.
        upper: upper end of each bin's interval, infinite where the density may be zero; NaN in bins
            without samples.
        posterior: standard deviation of each bin that comes from the decoder's weights, to first
            order; NaN in bins without samples.
        monte_carlo: that as many samples of equal weight would have, likewise.
        weights: that unequal weights add, likewise.

    Example:
        >>> import numpy as np
        >>> p, zero = np.array([0.2, 0.8]), np.zeros(2)
        >>> histogram = Histogram((np.arange(3.0),), p, p / 2, 2 * p, zero, p / 10, zero)
        >>> FreeEnergySurface.of(histogram, kt=2.5).energy.round(3)
        array([3.466, 0.   ])
    """

    edges: tuple[Array, ...]
    energy: Array
    lower: Array
    upper: Array
    posterior: Array
    monte_carlo: Array
    weights: Array

    @classmethod
    def of(cls, histogram: Histogram, kt: float) -> FreeEnergySurface:
        """Turn a density and its bands into a free energy.

        Args:
            histogram: with samples in at least one bin.
            kt: thermal energy in kJ/mol.
        """
        p = histogram.density
        known = np.where(p > 0, p, np.nan)

        def energy(density: Array) -> Array:
            with np.errstate(divide="ignore"):
                return kt * (math.log(p.max()) - np.log(density))

        return cls(
            histogram.edges,
            energy(p),
            np.where(p > 0, energy(histogram.upper), np.nan),
            np.where(p > 0, energy(histogram.lower), np.nan),
            kt * histogram.posterior / known,
            kt * histogram.monte_carlo / known,
            kt * histogram.weights / known,
        )


class Uncertainty(NamedTuple):
    """Of m statistics.

    Attributes:
        draws: shape ``(n_draws, m)``.
        posterior: standard deviation from the decoder's weights, shape ``(m,)``.
        monte_carlo: that as many samples of equal weight would have, shape ``(m,)``.
        weights: that unequal weights add, shape ``(m,)``.
    """

    draws: Tensor
    posterior: Tensor
    monte_carlo: Tensor
    weights: Tensor


def uncertainty(
    centre: Tensor,
    draws: Tensor,
    groups: Replicates,
    fraction: Tensor,
    *,
    shared_truth: bool,
    limits: tuple[Tensor, Tensor],
    seed: int,
    circular: Tensor | None = None,
    positive: bool = False,
) -> Uncertainty:
    r"""Add the spread of the groups to bootstrap draws, and keep the parts apart.

    The spread enters as a multivariate t distribution of D - 1 degrees of freedom with the
    covariance of the groups' values, each scaled to its part of the variance. So intervals from a
    few groups are wide enough, and statistics vary together as they do over the groups.

    Args:
        centre: m statistics of all samples, shape ``(m,)``.
        draws: their bootstrap draws, shape ``(n_draws, m)``.
        groups: the statistics of each of D groups; groups with NaN, where
            ``centre`` has none, are left out.
        fraction: of the variance that equal weights would have, shape ``(m,)``, see
            :func:`equal_weight_fraction`.
        shared_truth: whether all groups estimate the same value.
        limits: lowest and highest possible values, shapes ``(m,)``.
        seed: of the random numbers.
        circular: which statistics are angles, shape ``(m,)``; then all are near ``centre``.
        positive: whether the spread multiplies draws by exp(spread / centre), to first order the
            same; densities and their logarithms stay finite.
    """
    angle = torch.zeros_like(centre, dtype=torch.bool) if circular is None else circular

    def away(values: Tensor) -> Tensor:
        return torch.where(angle, wrap(values - centre), values - centre)

    moved = away(draws)
    sampling = moved.var(0)
    monte_carlo = sampling * fraction.nan_to_num(1.0).clamp(max=1.0)
    posterior = torch.zeros_like(centre)
    lost = centre.isnan()  # of one statistic, no reason to leave groups out of the others
    known = (groups.observed.isfinite() | lost).all(-1)
    known &= (groups.draws.isfinite() | lost).all(-1).all(0)
    if int(known.sum()) > 1:
        values, noise = away(groups.observed[known]), away(groups.draws[:, known]).var(0).mean(0)
        jumps, posterior = _spread(values, noise, shared_truth, len(draws), seed)
        if positive:
            jumps = draws * torch.expm1((jumps / centre).nan_to_num(0.0))
        moved = moved + jumps
    low, high = limits
    full = torch.where(angle, centre + moved, (centre + moved).clamp(low, high))
    parts = (posterior, monte_carlo, sampling - monte_carlo)
    return Uncertainty(full, *(p.clamp(min=0.0).sqrt() for p in parts))


def _spread(
    values: Tensor, noise: Tensor, shared_truth: bool, n_draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws of the groups' spread around their mean, (n_draws, m), and its variance (m,)."""
    n_groups = len(values)
    centred = values - values.mean(0)
    observed = centred.square().sum(0) / (n_groups - 1)
    between = (observed - noise).clamp(min=0.0)
    variance = between * (1 / n_groups if shared_truth else 1 + 1 / n_groups)
    scaled = centred * (variance / observed.clamp(min=torch.finfo(observed.dtype).tiny)).sqrt()
    generator = random_stream(seed, 1)
    normal = torch.randn(n_draws, n_groups, dtype=values.dtype, generator=generator)
    # chi-square of D - 1 degrees of freedom, the scale of a t distribution
    chi2 = torch.randn(n_draws, n_groups - 1, dtype=values.dtype, generator=generator).square()
    return normal @ scaled / chi2.sum(1, keepdim=True).sqrt(), variance


def equal_weight_fraction(weights: Tensor, influence: Tensor, stratum: Tensor) -> Tensor:
    r"""Return the variance that equal weights would give, as a fraction of the variance, ``(m,)``.

    .. math:: \frac{\sum_s \frac{1}{n_s} \big(W_s \sum_i w_i \varphi_i^2
              - (\sum_i w_i \varphi_i)^2\big)}
              {\sum_s \big(\sum_i w_i^2 \varphi_i^2 - \frac{1}{n_s} (\sum_i w_i \varphi_i)^2\big)},
              \quad W_s = \sum_i w_i,

    where i runs over the :math:`n_s` samples of the stratum s. One for weights that are equal
    within strata; NaN for a statistic that is constant.

    Args:
        weights: shape ``(n,)``.
        influence: :math:`\varphi`, how much each sample moves the statistic (:math:`f_i - \mu` for
            a mean), up to a constant factor, shape ``(n, m)``.
        stratum: of every sample, shape ``(n,)``, from 0.

    Example:
        >>> import torch
        >>> influence = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
        >>> weights, one = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long)
        >>> equal_weight_fraction(weights, influence, one)
        tensor([0.5000], dtype=torch.float64)
    """
    w, phi = weights.double()[:, None], influence.double()

    def sums(columns: Tensor) -> Tensor:
        size = int(stratum.max()) + 1
        return columns.new_zeros(size, columns.shape[1]).index_add_(0, stratum, columns)

    counts = sums(torch.ones_like(w)).clamp(min=1.0)
    own = sums(w * phi).square() / counts
    ideal = sums(w) * sums(w * phi.square()) / counts - own
    return ideal.sum(0) / (sums((w * phi).square()) - own).sum(0)
