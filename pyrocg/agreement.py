"""Do draws of the decoder's weights agree with the trained weights that they are drawn around?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import torch

from pyrocg.cautions import Caution
from pyrocg.distributions import wrap
from pyrocg.prediction import Prediction

__all__ = ["of_weight_draws"]

_MOST_WORSE = 1.0  # nats; e^-1 of the effective samples or fewer are left
_NEGLIGIBLE = 0.05  # nats
_ERROR_PROBABILITY = 1e-3  # that any of the observables is said to differ by chance
_BEYOND = 2.0  # times what the posterior expects


def of_weight_draws(
    drawn: Prediction, trained: Prediction, expected_excess: float | None = None
) -> Iterator[Caution]:
    r"""Cautions about a posterior over the decoder's weights, seen from the trained weights.

    ``weight_draws_worse``: the median of the draws' bounds of log Z is below the bound of the
    trained weights by more than 1 nat, or by more than twice what the posterior expects (and more
    than 0.05 nats), beyond the noise. The posterior is then no picture of the weights that training
    could have given: the divergence is no parabola that far out.

    ``weight_draws_shifted``: a plain average over the draws differs from that of the trained
    weights by more than both intervals allow, at a level of 0.1 % for all observables together
    (Bonferroni), two-sided, with :math:`\sigma^2 = \sigma_{draws}^2 + \sigma_{trained}^2` of all
    parts of their uncertainty.

    Args:
        drawn: predicted with the posterior.
        trained: predicted without, for the same observables.
        expected_excess: of the posterior, nats; see :class:`~pyrocg.laplace.LaplacePosterior`.

    Raises:
        ValueError: the first has no weight draws, or the second has some.

    Example:
        >>> import pyrocg
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0),
        ...     pyrocg.IdentityCoordinates(2),
        ...     latent_dim=1,
        ...     hidden=(8,),
        ... )
        >>> posterior = pyrocg.EnsemblePosterior.of([cg, cg])
        >>> trained = pyrocg.predict(cg, num_samples=500, progress=False)
        >>> drawn = pyrocg.predict(
        ...     cg, num_samples=500, posterior=posterior, n_weight_draws=2, progress=False
        ... )
        >>> list(of_weight_draws(drawn, trained))
        []
    """
    if not drawn.weight_draw.any() or trained.weight_draw.any():
        raise ValueError(
            "expected a prediction with several weight draws and one of the trained weights alone, "
            f"got {int(drawn.weight_draw.max()) + 1} and {int(trained.weight_draw.max()) + 1} draws"
        )
    yield from _worse(drawn, trained, expected_excess)
    yield from _shifted(drawn, trained)


def _worse(
    drawn: Prediction, trained: Prediction, expected_excess: float | None
) -> Iterator[Caution]:
    bounds, log_w = drawn.bounds(), trained.log_weights[torch.isfinite(trained.log_weights)]
    best = float(trained.bounds()[0])
    excess = best - float(bounds.median())
    above_median = min(0.5 + len(bounds) ** -0.5, 1.0)  # of the draws, with 95 % confidence
    least = (
        best - float(bounds.quantile(above_median)) - 3.0 * float(log_w.std()) / len(log_w) ** 0.5
    )
    limit, promise = _MOST_WORSE, ""
    if expected_excess is not None and math.isfinite(expected_excess):
        limit = min(limit, max(_BEYOND * expected_excess, _NEGLIGIBLE))
        promise = f", where their posterior expects {expected_excess:.2g}"
    if least > limit or not math.isfinite(excess):
        text = (
            f"draws of the decoder's weights are {excess:.2g} nats farther from the Boltzmann "
            f"density than the trained weights{promise}: their intervals say little; train "
            "longer, or predict without a posterior"
        )
        yield Caution("weight_draws_worse", text)


def _shifted(drawn: Prediction, trained: Prediction) -> Iterator[Caution]:
    one, other = drawn.estimates(corrected=False), trained.estimates(corrected=False)
    if not one:
        return
    normal = NormalDist().inv_cdf(1 - _ERROR_PROBABILITY / (2 * len(one)))
    for name, of_draws in one.items():
        gap = of_draws.mean - other[name].mean
        if of_draws.unit == "rad":
            gap = float(wrap(torch.tensor(gap, dtype=torch.float64)))
        error = math.hypot(of_draws.standard_deviation, other[name].standard_deviation)
        if abs(gap) > normal * error:
            text = (
                f"{name}: the average over draws of the decoder's weights differs from that of the "
                f"trained weights by {gap:.3g} {of_draws.unit}".rstrip()
                + ", more than both intervals allow: train longer, or predict without a posterior"
            )
            yield Caution("weight_draws_shifted", text, name)
