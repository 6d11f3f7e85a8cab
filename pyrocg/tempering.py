"""Tempering schedules: pure rules for the next tempering factor t, which know no model.

The target at t is exp(-t β U). A schedule is called between steps with the current t, the
fraction of training done and, where it asks for them, the reduced energies and log weights of
samples drawn at t. What went wrong, :mod:`pyrocg.tempering_faults` finds afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocg.weights import log_mean_exp

__all__ = [
    "AdaptiveSchedule",
    "FixedSchedule",
    "GeometricSchedule",
    "LinearSchedule",
    "TemperingSchedule",
    "WeightedEnergies",
    "conditional_ess",
    "kl_from_weights",
    "kl_increase",
    "log_z_ratio",
]


class WeightedEnergies(NamedTuple):
    """Samples as a schedule sees them, both of shape ``(n,)``.

    Attributes:
        reduced_energy: βU.
        log_weights: log importance weights for the target at the current t.
    """

    reduced_energy: Tensor
    log_weights: Tensor


def log_z_ratio(reduced_energy: Tensor, log_weights: Tensor, delta: float) -> Tensor:
    r"""Estimate :math:`\log Z_{t+\Delta}/Z_t = \log E_w[\exp(-\Delta\, \beta U)]`.

    Args:
        reduced_energy: :math:`\beta U` of samples, shape ``(n,)``.
        log_weights: their log importance weights for the target at t, shape ``(n,)``.
        delta: the step :math:`\Delta` in t.

    Example:
        >>> import torch
        >>> log_z_ratio(torch.tensor([2.0, 2.0]), torch.zeros(2), 0.5).item()
        -1.0
    """
    return torch.logsumexp(log_weights - delta * reduced_energy, 0) - torch.logsumexp(
        log_weights, 0
    )


def kl_increase(reduced_energy: Tensor, log_weights: Tensor, delta: float) -> Tensor:
    r"""Estimate the increase of :math:`KL(q \| \pi_t)` when t grows by :math:`\Delta`.

    .. math:: \Delta KL = \Delta\, E_q[\beta U] + \log Z_{t+\Delta} - \log Z_t

    Source: Schöberl, Zabaras and Koutsourelakis (2020), arXiv:2002.10148, with the log Z
    ratio in the extended space. Arguments as in :func:`log_z_ratio`.
    """
    return delta * reduced_energy.mean() + log_z_ratio(reduced_energy, log_weights, delta)


def kl_from_weights(log_weights: Tensor) -> Tensor:
    r"""Estimate :math:`KL(q \| \pi_t) = \log Z_t - \mathrm{ELBO}_t` from samples of q.

    .. math:: KL \approx \log \frac1n \sum_i w_i - \frac1n \sum_i \log w_i

    It is never negative, and too small while log Z is underestimated from few samples.

    Args:
        log_weights: log importance weights for the target at t, shape ``(n,)``.

    Example:
        >>> import torch
        >>> kl_from_weights(torch.full((5,), 3.0)).item()
        0.0
    """
    return log_mean_exp(log_weights) - log_weights.mean()


def conditional_ess(reduced_energy: Tensor, log_weights: Tensor, delta: float) -> Tensor:
    r"""Conditional effective sample size, a fraction, of a step :math:`\Delta` in t.

    .. math:: \frac{(\sum_i W_i v_i)^2}{\sum_i W_i v_i^2}, \quad v_i = e^{-\Delta \beta U_i}

    with normalised weights :math:`W_i`. Source: Zhou, Johansen and Aston (2016), "Toward
    automatic model comparison". Arguments as in :func:`log_z_ratio`.
    """
    log_w = torch.log_softmax(log_weights, 0)
    log_v = -delta * reduced_energy
    return torch.exp(2 * torch.logsumexp(log_w + log_v, 0) - torch.logsumexp(log_w + 2 * log_v, 0))


@dataclass(frozen=True)
class TemperingSchedule(ABC):
    """A rule for the next t.

    Attributes:
        start: the first t, in (0, 1].
    """

    start: float = 1.0

    #: whether :meth:`next` needs samples drawn at the current t
    needs_samples = False

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"expected a starting t in (0, 1], got {self.start}")

    @abstractmethod
    def next(self, t: float, progress: float, samples: WeightedEnergies | None = None) -> float:
        """Return the next t, at least ``t`` and at most 1.

        Args:
            t: the current tempering factor.
            progress: fraction of the training steps done, in [0, 1].
            samples: samples of the generator at t; needed if :attr:`needs_samples`.
        """


@dataclass(frozen=True)
class FixedSchedule(TemperingSchedule):
    """t stays at ``start`` (1: no tempering)."""

    def next(self, t: float, progress: float, samples: WeightedEnergies | None = None) -> float:
        return self.start


@dataclass(frozen=True)
class _TimedSchedule(TemperingSchedule):
    until: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.until <= 1:
            raise ValueError(f"expected until in (0, 1], got {self.until}")


@dataclass(frozen=True)
class LinearSchedule(_TimedSchedule):
    """t grows linearly from ``start`` to 1, reached at the fraction ``until`` of the steps.

    Example:
        >>> LinearSchedule(start=0.5, until=0.5).next(0.5, progress=0.25)
        0.75
    """

    def next(self, t: float, progress: float, samples: WeightedEnergies | None = None) -> float:
        return self.start + (1 - self.start) * min(1.0, progress / self.until)


@dataclass(frozen=True)
class GeometricSchedule(_TimedSchedule):
    """log t grows linearly from log ``start`` to 0, reached at the fraction ``until``.

    Example:
        >>> round(GeometricSchedule(start=0.01, until=1.0).next(0.01, progress=0.5), 6)
        0.1
    """

    def next(self, t: float, progress: float, samples: WeightedEnergies | None = None) -> float:
        return self.start ** (1 - min(1.0, progress / self.until))


@dataclass(frozen=True)
class AdaptiveSchedule(TemperingSchedule):
    r"""The largest step that keeps the estimated increase of the KL divergence within bounds.

    The proposal is :math:`\Delta = \min(\text{max\_step}, 1 - t)`, times ``shrink`` until every
    bound that is not None holds:

    .. math:: \Delta KL(\Delta) \le \text{max\_kl\_increase}, \quad
              \Delta KL(\Delta) \le \text{max\_relative\_increase}\; KL_t, \quad
              \text{cESS}(\Delta) \ge \text{min\_ess},

    with :func:`kl_increase`, :func:`kl_from_weights` and :func:`conditional_ess`. Below
    ``min_step`` the step is taken as ``min_step``, so that noise in the estimates cannot stall
    the schedule. From the fraction ``until`` of the steps on, t = 1.

    The paper's rule is the relative bound alone, 0.75 to 1, with steps of at most 1e-3 or 1e-4
    (second example). The authors also wait until the loss no longer falls; here t moves at every
    call, that is at every evaluation of the training, so a longer evaluation interval is what
    gives the model time to follow. A model that fits too well stalls the relative bound, KL being
    near 0: then ``min_step`` sets the pace.
    Source: Schöberl, Zabaras and Koutsourelakis (2020), arXiv:2002.10148.

    Attributes:
        max_kl_increase: bound in nats, or None.
        max_relative_increase: bound as a multiple of the current KL divergence, or None.
        min_ess: bound on the conditional ESS, a fraction, or None.
        max_step: largest step in t.
        min_step: smallest step in t.
        shrink: factor of a step that breaks a bound, in (0, 1).
        until: fraction of the training by which t = 1 in any case.

    Example:
        >>> import torch
        >>> rule = AdaptiveSchedule(start=0.1, max_kl_increase=0.1, max_step=0.5)
        >>> energies = torch.linspace(-2, 2, 100)
        >>> round(rule.next(0.1, 0.0, WeightedEnergies(energies, torch.zeros(100))), 4)
        0.4
        >>> paper = AdaptiveSchedule(
        ...     start=1e-4,
        ...     max_kl_increase=None,
        ...     max_relative_increase=1.0,
        ...     min_ess=None,
        ...     max_step=1e-3,
        ...     min_step=1e-6,
        ... )
    """

    start: float = 1e-2
    max_kl_increase: float | None = 0.1
    min_ess: float | None = 0.5
    max_step: float = 0.1
    min_step: float = 1e-4
    until: float = 0.8
    max_relative_increase: float | None = None
    shrink: float = 0.6

    needs_samples = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_kl_increase is not None and not self.max_kl_increase > 0:
            raise ValueError(f"expected max_kl_increase > 0 nats, got {self.max_kl_increase}")
        if self.max_relative_increase is not None and not self.max_relative_increase > 0:
            raise ValueError(
                f"expected max_relative_increase > 0, got {self.max_relative_increase}"
            )
        if self.min_ess is not None and not 0 < self.min_ess < 1:
            raise ValueError(f"expected min_ess in (0, 1), got {self.min_ess}")
        if self.max_kl_increase is self.max_relative_increase is self.min_ess is None:
            raise ValueError(
                "expected at least one bound, got None for all; give max_kl_increase, "
                "max_relative_increase or min_ess, or take a LinearSchedule"
            )
        if not 0 < self.min_step <= self.max_step <= 1:
            raise ValueError(
                "expected 0 < min_step <= max_step <= 1, "
                f"got min_step={self.min_step}, max_step={self.max_step}"
            )
        if not 0 < self.shrink < 1:
            raise ValueError(f"expected shrink in (0, 1), got {self.shrink}")
        if not 0 < self.until <= 1:
            raise ValueError(f"expected until in (0, 1], got {self.until}")

    def next(self, t: float, progress: float, samples: WeightedEnergies | None = None) -> float:
        if progress >= self.until or t >= 1:
            return 1.0
        if samples is None:
            raise ValueError(
                "expected reduced energies and log weights of samples at the current t, got none; "
                "the adaptive schedule needs them to bound its step"
            )
        finite = torch.isfinite(samples.reduced_energy) & torch.isfinite(samples.log_weights)
        energy = samples.reduced_energy[finite].double()
        log_w = samples.log_weights[finite].double()
        delta = min(self.max_step, 1 - t)
        while delta > self.min_step and not self._accepts(energy, log_w, delta):
            delta *= self.shrink
        return min(1.0, t + max(delta, min(self.min_step, 1 - t)))

    def _accepts(self, energy: Tensor, log_weights: Tensor, delta: float) -> bool:
        if len(energy) == 0:
            return False
        bounds = [] if self.max_kl_increase is None else [self.max_kl_increase]
        if self.max_relative_increase is not None:
            bounds.append(self.max_relative_increase * float(kl_from_weights(log_weights)))
        if bounds and not float(kl_increase(energy, log_weights, delta)) <= min(bounds):
            return False
        ess = conditional_ess(energy, log_weights, delta)
        return self.min_ess is None or float(ess) >= self.min_ess
