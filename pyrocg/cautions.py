"""When not to trust a prediction: each reason as a code and as a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.arviz_compat import pareto_smooth
from pyrocg.distributions import wrap
from pyrocg.estimates import Estimate
from pyrocg.weights import ess, log_mean_exp

__all__ = ["Caution", "of_components", "of_model_bias", "of_populations", "of_weights"]

Array: TypeAlias = NDArray[np.float64]
NEARLY_EQUAL = 0.95  # ESS above which weights differ too little for their tail to matter
FAR = math.log(3.0)  # of a log weight above that of their mean
MAX_PARETO_K = 0.7
FEW = 400  # effective samples
FEW_IN_POPULATION = 50  # effective samples
DOMINANT = 0.05  # of all weight
ERROR_PROBABILITY = 0.05  # that any observable of an exact model is said to disagree


@dataclass(frozen=True)
class Caution:
    """A reason not to trust a prediction; ``str`` of it is a sentence.

    Attributes:
        code: ``pareto_k``, ``few_effective_samples``, ``dominant_weight``, ``nonfinite``,
            ``component_without_weight``, ``component_pareto_k``, ``few_in_population``,
            ``model_bias``, ``weight_draws_worse`` or ``weight_draws_shifted``.
        text: the sentence.
        observable: that it is about; None if about all.
    """

    code: str
    text: str
    observable: str | None = None

    def __str__(self) -> str:
        return self.text


def of_weights(log_weights: Tensor, pareto_k: float) -> Iterator[Caution]:
    """Cautions about importance weights as a whole.

    ``pareto_k``: k-hat above 0.7 (Vehtari et al. 2024), unless ESS is above 95 %;
    ``few_effective_samples``: ESS n below 400; ``dominant_weight``: one sample has more than 5 % of
    the weight; ``nonfinite``: samples without finite energy.

    Args:
        log_weights: not smoothed, shape ``(n,)``; minus infinity for weight 0.
        pareto_k: of them.

    Example:
        >>> import torch
        >>> [c.code for c in of_weights(torch.tensor([0.0, 0.0, 9.0]), 0.2)]
        ['few_effective_samples', 'dominant_weight']
    """
    n, fraction = len(log_weights), float(ess(log_weights))
    if pareto_k > MAX_PARETO_K and fraction < NEARLY_EQUAL:
        text = (
            f"Pareto k-hat is {pareto_k:.3f}, above {MAX_PARETO_K}: corrected averages and their "
            "intervals cannot be trusted; train longer"
        )
        yield Caution("pareto_k", text)
    if fraction * n < FEW:
        text = (
            f"the effective sample size is {fraction * n:.0f} of {n}: intervals are rough; "
            "train longer or draw more samples"
        )
        yield Caution("few_effective_samples", text)
    largest = float(torch.softmax(log_weights, 0).max())
    if largest > DOMINANT:
        text = (
            f"one sample has {100 * largest:.0f} % of all weight: corrected averages are mostly "
            "its values; train longer or draw more samples"
        )
        yield Caution("dominant_weight", text)
    lost = int((~torch.isfinite(log_weights)).sum())
    if lost:
        text = (
            f"{lost} of {n} samples ({100 * lost / n:.2g} %) have no finite energy; "
            "they got weight 0"
        )
        yield Caution("nonfinite", text)


def of_components(component: NDArray[np.int64], log_weights: Tensor) -> Iterator[Caution]:
    """Cautions about the components of a mixture latent.

    ``component_without_weight``: its samples weigh nothing; ``component_pareto_k``: k-hat of its
    weights is above 0.7, unless they are nearly equal, with an ESS above 95 % and none above
    thrice their mean.

    Args:
        component: of every sample, shape ``(n,)``.
        log_weights: shape ``(n,)``; minus infinity for weight 0.
    """
    for k in np.unique(component):
        own = torch.from_numpy(component == k)
        if not bool(torch.isfinite(log_weights[own]).any()):
            text = (
                f"component {k + 1} has no weight: none of its {int(own.sum())} samples has a "
                "finite energy, so its basin is missing; train longer"
            )
            yield Caution("component_without_weight", text)
            continue
        log_w = log_weights[own]
        k_hat = pareto_smooth(log_w.numpy())[1]
        uneven = float(ess(log_w)) < NEARLY_EQUAL or float(log_w.max() - log_mean_exp(log_w)) > FAR
        if MAX_PARETO_K < k_hat < math.inf and uneven:
            text = (
                f"Pareto k-hat of component {k + 1} is {k_hat:.3f}, above {MAX_PARETO_K}: the "
                "weight of its basin cannot be trusted; train longer"
            )
            yield Caution("component_pareto_k", text)


def of_populations(values: Mapping[str, Array], log_weights: Tensor) -> Iterator[Caution]:
    """``few_in_population``: a population rests on fewer than 50 effective samples.

    Args:
        values: of every observable, shape ``(n,)``; populations are those of zeros and ones only.
        log_weights: shape ``(n,)``; minus infinity for weight 0.
    """
    for name, value in values.items():
        if not np.isin(value, (0.0, 1.0)).all():
            continue
        own = log_weights[torch.from_numpy(value == 1)]
        held = bool(torch.isfinite(own).any())
        effective = float(ess(own)) * len(own) if held else 0.0
        if effective < FEW_IN_POPULATION:
            text = (
                f"{name} rests on {effective:.0f} effective samples: its interval is rough; "
                "draw more samples, and check that its basins were found"
            )
            yield Caution("few_in_population", text, name)


def of_model_bias(
    plain: Mapping[str, Estimate], corrected: Mapping[str, Estimate]
) -> Iterator[Caution]:
    r"""``model_bias``: the model's own average is not the importance-corrected one.

    The difference is compared with its own standard error, from bootstrap draws that both share.
    The level is 5 % for all observables together (Bonferroni), two-sided: a warning too much costs
    little, since the corrected average is right then too.

    Args:
        plain: estimates by observable.
        corrected: the same, from the same bootstrap.
    """
    if not plain:
        return
    normal = NormalDist().inv_cdf(1 - ERROR_PROBABILITY / (2 * len(plain)))
    for name, own in plain.items():
        other = corrected[name]
        gap, error = _difference(own, other)
        if abs(gap) > normal * error:
            text = (
                f"{name}: the model's own average differs from the corrected one by {gap:.3g} "
                f"{own.unit}".rstrip()
                + f", {abs(gap) / error:.0f} standard errors: "
                "use the corrected one"
            )
            yield Caution("model_bias", text, name)


def _difference(own: Estimate, other: Estimate) -> tuple[float, float]:
    """Of two averages, with its standard error; draws of an angle are near its mean.

    The error is that of draws towards no difference, from their quantile at one in twenty: errors
    of heavy weights are larger on one side than on the other.
    """
    gap = own.mean - other.mean
    if own.unit == "rad":
        gap = float(wrap(torch.tensor(gap, dtype=torch.float64)))
    moved = ((own.draws - own.mean) - (other.draws - other.mean)) * -math.copysign(1.0, gap)
    error = float(np.quantile(moved, 0.95)) / NormalDist().inv_cdf(0.95)
    return gap, max(error, math.ulp(abs(own.mean) + abs(other.mean)) * 1e3)
