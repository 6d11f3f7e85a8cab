"""What can go wrong while t goes to 1: stalls, forced ends, overshoots and collapses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from pyrocg.tempering import (
    AdaptiveSchedule,
    TemperingSchedule,
    WeightedEnergies,
    log_z_ratio,
)

__all__ = ["TemperingFault", "expected_log_z", "find_tempering_faults"]

_STALLED = 5  # smallest steps in a row
_OVERSHOT = 1.0  # nats, besides a doubling
_RECOVERED = 5  # evaluations, within which the model may follow
_LOST = 0.05  # of all weight
_LASTING = 3  # evaluations before and after a loss that must all show it
_ERRORS = 5.0  # standard errors that noise may reach


@dataclass(frozen=True)
class TemperingFault:
    """Something that went wrong during tempering; ``str`` of it is a sentence.

    Attributes:
        code: ``stall``, ``forced``, ``overshoot`` or ``collapse``.
        step: training step of the evaluation that showed it.
        text: the sentence.
    """

    code: str
    step: int
    text: str

    def __str__(self) -> str:
        return self.text


def expected_log_z(samples: WeightedEnergies, log_z: float, delta: float) -> tuple[float, float]:
    r"""Return what samples at t say of log Z at :math:`t + \Delta`, NaN if nothing.

    .. math:: \log Z_t + \log \sum_i W_i v_i, \quad v_i = e^{-\Delta\, \beta U_i}

    with normalised weights :math:`W_i`; and the standard error of the second part,
    :math:`(\sum_i W_i^2 (v_i / \bar v - 1)^2)^{1/2}`.

    Args:
        samples: drawn at t; those without finite energy or weight are left out.
        log_z: estimate of :math:`\log Z_t`.
        delta: :math:`\Delta`.

    Example:
        >>> import torch
        >>> samples = WeightedEnergies(torch.tensor([2.0, 2.0]), torch.zeros(2))
        >>> expected_log_z(samples, 5.0, 0.5)
        (4.0, 0.0)
    """
    finite = torch.isfinite(samples.reduced_energy) & torch.isfinite(samples.log_weights)
    if not bool(finite.any()):
        return math.nan, math.nan
    energy, log_w = (column[finite].double() for column in samples)
    log_ratio = log_z_ratio(energy, log_w, delta)
    away = torch.exp(-delta * energy - log_ratio) - 1.0
    error = (torch.softmax(log_w, 0) * away).square().sum().sqrt()
    return log_z + float(log_ratio), float(error)


def find_tempering_faults(
    history: Mapping[str, Sequence[float]], schedule: TemperingSchedule, num_samples: int
) -> tuple[TemperingFault, ...]:
    r"""Find what went wrong in the evaluations of a tempered training.

    ``stall``: an adaptive schedule took five smallest steps in a row, so its bounds did not hold
    even for those. ``forced``: its time was over before t = 1, and t jumped there. ``overshoot``:
    when t rose, the KL divergence rose by more than a nat beyond a doubling, and stayed there for
    five more evaluations. ``collapse``: log Z stays behind what earlier samples promised. With the
    promise of one evaluation for the t of the next, :func:`expected_log_z`, the sum

    .. math:: D_i = \sum_{j \le i} (\log \hat Z_j - \log \hat Z_j^{\mathrm{expected}})

    wanders around a constant while no mode is lost, rises while the weights get better, and falls
    by :math:`-\log(1 - f)` when a fraction f of the weight is lost. A fall of more than 5 % and
    five standard errors between three evaluations and three later ones, all of them, is a collapse.
    Smaller losses drown in the noise, and so does a loss while the ESS is low: for them there are
    mixture latents, :class:`~pyrocg.priors.StratifiedPrior`.

    Args:
        history: columns ``step``, ``t``, ``elbo``, ``log_z``, ``ess`` (a fraction),
            ``next_log_z`` and ``next_error``; the last two are what :func:`expected_log_z` gives
            for the t of the next evaluation, NaN where it is not known.
        schedule: of t.
        num_samples: of each evaluation.

    Raises:
        KeyError: a column is missing.

    Example:
        >>> log_z = [0.1] * 3 + [-0.1] * 3
        >>> history = {"step": range(100, 700, 100), "t": [1.0] * 6, "ess": [0.9] * 6}
        >>> history |= {"log_z": log_z, "elbo": log_z, "next_log_z": log_z, "next_error": [0.0] * 6}
        >>> [str(f) for f in find_tempering_faults(history, AdaptiveSchedule(), 1000)]
        ['log Z fell by 0.2 nats at step 400: 18 % of the weight was lost; temper more slowly']
    """
    return (*_of_steps(history, schedule), *_overshoots(history), *_collapse(history, num_samples))


def _of_steps(
    history: Mapping[str, Sequence[float]], schedule: TemperingSchedule
) -> Iterator[TemperingFault]:
    """Stalls and forced ends of an adaptive schedule."""
    if not isinstance(schedule, AdaptiveSchedule):
        return
    smallest = 0
    for step, (t, new) in zip(history["step"][1:], pairwise(history["t"]), strict=True):
        rise = new - t
        smallest_step = 1.001 * schedule.min_step + 2.0**-23 * new  # t is stored in float32
        held = t < 1 and 0 < rise <= smallest_step < 1 - t
        smallest = smallest + 1 if held else 0
        if smallest == _STALLED:
            text = (
                f"t stalled at {new:.3g} by step {step:.0f}: even the smallest step breaks the "
                "bounds; train longer at each t (evaluate less often), or raise the bounds"
            )
            yield TemperingFault("stall", int(step), text)
        if new == 1 and rise > 1.001 * schedule.max_step:
            text = (
                f"t was forced from {t:.3g} to 1 by step {step:.0f}, the end of its time; train "
                "longer, or raise the bounds or the smallest step"
            )
            yield TemperingFault("forced", int(step), text)


def _overshoots(history: Mapping[str, Sequence[float]]) -> Iterator[TemperingFault]:
    kl = [log_z - elbo for log_z, elbo in zip(history["log_z"], history["elbo"], strict=True)]
    t = history["t"]
    for i in range(1, len(t)):
        limit = 2 * kl[i - 1] + _OVERSHOT
        after = kl[i : i + _RECOVERED + 1]
        if t[i] > t[i - 1] and len(after) > _RECOVERED and min(after) > limit:
            text = (
                f"t rose from {t[i - 1]:.3g} to {t[i]:.3g} by step {history['step'][i]:.0f} and "
                f"the KL divergence from {kl[i - 1]:.3g} to {kl[i]:.3g} nats, and the model did "
                "not follow; take smaller steps in t"
            )
            yield TemperingFault("overshoot", int(history["step"][i]), text)


def _collapse(history: Mapping[str, Sequence[float]], num_samples: int) -> Iterator[TemperingFault]:
    """The first evaluation that shows a loss."""
    level, noise = _drift(history)  # D, and the variance of what it added up
    own = [(1.0 / max(e, 1.0 / num_samples) - 1.0) / num_samples for e in history["ess"]]
    for i in range(_LASTING, len(level) - _LASTING + 1):
        after = max(level[i : i + _LASTING])
        for j in range(_LASTING - 1, i):
            fall = min(level[j - _LASTING + 1 : j + 1]) - after
            spread = noise[i] - noise[j] + own[i] + own[j]
            if fall > max(-math.log1p(-_LOST), _ERRORS * math.sqrt(spread)):
                step = history["step"][i]
                text = (
                    f"log Z fell by {fall:.2g} nats at step {step:.0f}: "
                    f"{-100 * math.expm1(-fall):.0f} % of the weight was lost; temper more slowly"
                )
                yield TemperingFault("collapse", int(step), text)
                return


def _drift(history: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float]]:
    """Sums over evaluations of log Z less what was expected, and of the squares of its errors."""
    level, noise = [0.0], [0.0]
    columns = (history["log_z"][1:], history["next_log_z"][:-1], history["next_error"][:-1])
    for log_z, expected, error in zip(*columns, strict=True):
        known = math.isfinite(log_z - expected)
        level.append(level[-1] + (log_z - expected if known else 0.0))
        noise.append(noise[-1] + (error**2 if known else 0.0))
    return level, noise
