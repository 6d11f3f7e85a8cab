"""What samples of a model, and those of a reference, say about log Z."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.averages import Average, average
from pyrocg.weights import bound, ess, log_mean_exp, log_mean_exp_error

__all__ = ["ReferenceEvidence", "model_evidence", "share_of"]

Array: TypeAlias = NDArray[np.float64]

_UNDERSAMPLED = math.log(100.0)  # of the ratio of the target's density to the model's


def model_evidence(log_w: Tensor) -> dict[str, Any]:
    """Return what a model's own samples say, by the names of ``Comparison``.

    Args:
        log_w: log importance weights, shape ``(n,)``.
    """
    finite = log_w[torch.isfinite(log_w)]
    return {
        "elbo": float(bound(log_w)),
        "elbo_error": float(finite.std() / math.sqrt(len(finite))),
        "log_z": float(log_mean_exp(log_w)),
        "log_z_error": float(log_mean_exp_error(log_w)),
        "ess": float(ess(log_w)),
        "n_samples": len(log_w),
    }


def share_of(part: NDArray[np.bool_], log_weights: Array, whole: NDArray[Any]) -> float:
    """Return the weight of a part over that of the whole; arrays of one shape."""
    w = np.exp(log_weights - log_weights.max()) * whole
    return float((w * part).sum() / w.sum())


@dataclass(frozen=True)
class ReferenceEvidence:
    r"""What a reference says, where the model can have it.

    The averages are over the reference: :math:`E_\pi[\log w] \ge \log Z`, the evidence upper bound,
    and :math:`E_\pi[1/w] = 1/Z`.

    Attributes:
        log_w: log importance weights of the model at every record, shape
            ``(n_ladders, n_records)``; any finite number where the model cannot have it.
        log_weights: of the records, of the same shape; minus infinity there.
        n_reference: records that were scored.
        unsupported: share of them that the model cannot have.
    """

    log_w: Array
    log_weights: Array
    n_reference: int
    unsupported: float

    @classmethod
    def of(cls, log_w: Array, log_weights: Array, kept: NDArray[np.bool_]) -> ReferenceEvidence:
        """Leave out what the model cannot have.

        Args:
            log_w: see :func:`~pyrocg.scoring.score`; NaN or infinite where the model has none.
            log_weights: of the records.
            kept: which were scored.

        Raises:
            ValueError: the model can have none of them.
        """
        supported = np.isfinite(log_w)
        if not supported.any():
            raise ValueError(
                "expected reference configurations that the model can have, got none of "
                f"{int(kept.sum())}; compare molecules with the same atoms in the same order"
            )
        with np.errstate(divide="ignore"):
            restricted = log_weights + np.log(supported)
        return cls(
            log_w=np.where(supported, log_w, log_w[supported].max()),
            log_weights=restricted,
            n_reference=int(kept.sum()),
            unsupported=1.0 - share_of(supported, log_weights, kept),
        )

    @cached_property
    def eubo(self) -> Average:
        """The evidence upper bound."""
        return self._average(self.log_w)

    @cached_property
    def inverse(self) -> Average:
        """Mean of 1/w, in units of its largest value."""
        return self._average(np.exp(self.log_w.min() - self.log_w))

    @property
    def log_z(self) -> float:
        """Minus the logarithm of the mean of 1/w."""
        return float(self.log_w.min() - math.log(self.inverse.mean))

    @property
    def forward_ess(self) -> float:
        r""":math:`1 / (E_\pi[w] E_\pi[1/w])`."""
        top = self.log_w.max()
        return math.exp(self.log_z - top) / self._average(np.exp(self.log_w - top)).mean

    @property
    def undersampled(self) -> float:
        """Share where the model has less than 1 % of the density."""
        low = self.log_w - self.log_z > _UNDERSAMPLED
        return share_of(low, self.log_weights, np.ones_like(low))

    def bridged(self, values: Array, plain: tuple[float, float]) -> tuple[float, float] | None:
        r"""Return a population A by :math:`Z_A = q(A) / E_{\pi|A}[1/w]`, with its standard error.

        Args:
            values: of the population, of the shape of the records.
            plain: q(A) of the model alone, with its error.

        Returns:
            None for other observables, or if A or the rest was not seen.
        """
        if not np.isin(values, (0.0, 1.0)).all():
            return None
        inside, weighted = values > 0, self.log_weights > -math.inf
        if not (weighted & inside).any() or not (weighted & ~inside).any() or not 0 < plain[0] < 1:
            return None
        parts = [self._inverse_within(inside), self._inverse_within(~inside)]
        z = plain[0] / parts[0].mean, (1.0 - plain[0]) / parts[1].mean
        errors = [plain[1] / (plain[0] * (1.0 - plain[0]))]
        errors += [part.standard_error / part.mean for part in parts]
        p = z[0] / (z[0] + z[1])
        return p, p * (1.0 - p) * math.sqrt(sum(error**2 for error in errors))

    def summary(self) -> dict[str, Any]:
        """Return all of it by the names of ``Comparison``."""
        return {
            "eubo": self.eubo.mean,
            "eubo_error": self.eubo.standard_error,
            "reference_log_z": self.log_z,
            "reference_log_z_error": self.inverse.standard_error / self.inverse.mean,
            "forward_ess": self.forward_ess,
            "n_reference": self.n_reference,
            "unsupported": self.unsupported,
            "undersampled": self.undersampled,
        }

    def _inverse_within(self, part: NDArray[np.bool_]) -> Average:
        """Average of 1/w, up to a factor, over a part of the reference."""
        with np.errstate(divide="ignore"):
            log_weights = self.log_weights + np.log(part)
        return average(np.exp(self.log_z - self.log_w), log_weights, name="1/w")

    def _average(self, values: Array) -> Average:
        return average(values, self.log_weights, name="log w")
