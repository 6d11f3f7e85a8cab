"""Averages over independent simulations: error bars, and signs that they have not converged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrocg.arviz_compat import convergence

__all__ = ["Average", "average", "student_quantile"]

_HIGHEST_R_HAT = 1.01
_FEWEST_TRANSITIONS = 100


@dataclass(frozen=True)
class Average:
    """An average over independent chains.

    Attributes:
        name: of the observable.
        unit: of mean, error and interval.
        mean: the average; for an angle the circular mean, in rad.
        standard_error: from the spread between chains.
        interval: by Student's t distribution.
        level: probability that the interval holds.
        per_chain: average of each chain, shape ``(n_chains,)``; NaN if it has no weight.
        r_hat: rank-normalised split R-hat; NaN if all values are equal.
        ess: effective number of independent records, of all chains (bulk ESS).
        transitions: how often the values of a population change from one record to the next; None
            for other observables.
        warnings: when not to trust this, in words.
    """

    name: str
    unit: str
    mean: float
    standard_error: float
    interval: tuple[float, float]
    level: float
    per_chain: NDArray[np.float64]
    r_hat: float
    ess: float
    transitions: int | None
    warnings: tuple[str, ...]


def average(
    values: NDArray[np.floating],
    log_weights: NDArray[np.float64],
    *,
    name: str,
    unit: str = "",
    circular: bool = False,
    level: float = 0.95,
) -> Average:
    r"""Average weighted values over independent chains.

    .. math:: \bar f = \frac{\sum_{ci} w_{ci} f_{ci}}{\sum_{ci} w_{ci}}, \quad
              s^2 = \frac{1}{n (n - 1)} \sum_c \Big(
              \frac{n \sum_i w_{ci} (f_{ci} - \bar f)}{\sum_{ci} w_{ci}} \Big)^2

    for n chains c: with equal weights, s is the standard error of the mean of the chains' means.
    The interval is :math:`\bar f \pm t\, s` with Student's t of n - 1 degrees of freedom. R-hat and
    ESS are those of :math:`w (f - \bar f)` (Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021).
    For angles f is replaced by :math:`\sin(f - \bar f) / R`, with the circular mean and the length
    R of the mean of :math:`e^{i f}`.

    Args:
        values: f, shape ``(n_chains, n_records)``.
        log_weights: log w, of the same shape.
        name: of the observable.
        unit: of the values.
        circular: whether values are angles in rad.
        level: probability that the interval holds.

    Raises:
        ValueError: fewer than two chains, or shapes differ.

    Example:
        >>> import numpy as np
        >>> values = np.random.default_rng(0).normal(size=(16, 100))
        >>> found = average(values, np.zeros((16, 100)), name="x")
        >>> round(found.standard_error, 3), round(found.r_hat, 2)
        (0.024, 1.0)
    """
    f = np.asarray(values, dtype=np.float64)
    if f.ndim != 2 or len(f) < 2 or f.shape != log_weights.shape:
        raise ValueError(
            "expected values and log weights of shape (n_chains, n_records) with at least 2 "
            f"chains, got {f.shape} and {log_weights.shape}"
        )
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    w = np.exp(log_weights - log_weights.max())
    w = w / w.mean()
    if circular:
        mean, departure = _circular(f, w)
    else:
        mean = float((w * f).mean())
        departure = f - mean
    influence = w * departure
    n = len(f)
    error = float(influence.mean(1).std(ddof=1) / math.sqrt(n))
    margin = student_quantile(level, n - 1) * error
    r_hat, effective = convergence(influence)
    binary = not circular and bool(np.isin(f, (0.0, 1.0)).all())
    transitions = int(np.abs(np.diff(f, axis=1)).sum()) if binary else None
    return Average(
        name=name,
        unit=unit,
        mean=mean,
        standard_error=error,
        interval=(mean - margin, mean + margin),
        level=level,
        per_chain=mean + influence.sum(1) / np.where(w.any(1), w.sum(1), math.nan),
        r_hat=r_hat,
        ess=effective,
        transitions=transitions,
        warnings=_warnings(name, r_hat, transitions),
    )


def _circular(f: NDArray[np.float64], w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Circular mean and the linearised departures from it."""
    c, s = float((w * np.cos(f)).mean()), float((w * np.sin(f)).mean())
    mean = math.atan2(s, c)
    return mean, np.sin(f - mean) / max(math.hypot(c, s), 1e-12)


def _warnings(name: str, r_hat: float, transitions: int | None) -> tuple[str, ...]:
    found = []
    if r_hat > _HIGHEST_R_HAT:
        found.append(
            f"R-hat of {name} is {r_hat:.4g}, above {_HIGHEST_R_HAT}: the chains do not agree yet; "
            "run longer"
        )
    if transitions is not None and transitions < _FEWEST_TRANSITIONS:
        found.append(
            f"only {transitions} transitions of {name} were seen: its error bar is not reliable; "
            "run longer, with higher temperatures, or with a bias"
        )
    return tuple(found)


def student_quantile(level: float, dof: int) -> float:
    """Return t with P(abs(T) <= t) = level, for Student's distribution of ``dof`` degrees.

    By bisection of the finite sums of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.

    Example:
        >>> round(student_quantile(0.95, 7), 4)
        2.3646
    """
    low, high = 0.0, math.pi / 2  # atan(t / sqrt(dof))
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _within(middle, dof) < level else (low, middle)
    return math.tan(low) * math.sqrt(dof)


def _within(angle: float, dof: int) -> float:
    """P(abs(T) <= sqrt(dof) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if dof % 2 == 0:
        ratios = [(k - 1) / k * cosine**2 for k in range(2, dof - 1, 2)]
        return sine * (1.0 + float(np.cumprod(ratios).sum()))
    if dof == 1:
        return 2 * angle / math.pi
    ratios = [(k - 1) / k * cosine**2 for k in range(3, dof - 1, 2)]
    return 2 / math.pi * (angle + sine * cosine * (1.0 + float(np.cumprod(ratios).sum())))
