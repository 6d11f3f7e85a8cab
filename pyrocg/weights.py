"""Importance weights: effective sample size, log Z and Pareto smoothing. Tensors in and out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ess", "log_mean_exp", "log_mean_exp_error", "normalised"]


def log_mean_exp(log_weights: Tensor) -> Tensor:
    r"""Return :math:`\log \frac1n \sum_i e^{\ell_i}`, the estimate of log Z.

    Example:
        >>> import torch
        >>> round(log_mean_exp(torch.tensor([0.0, 0.0, float("-inf")])).item(), 4)
        -0.4055
    """
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def normalised(log_weights: Tensor) -> Tensor:
    """Return weights that sum to 1."""
    return torch.softmax(log_weights, 0)


def ess(log_weights: Tensor) -> Tensor:
    r"""Kish's effective sample size as a fraction, :math:`(\sum w)^2 / (n \sum w^2)`.

    Example:
        >>> import torch
        >>> ess(torch.tensor([0.0, 0.0, float("-inf"), float("-inf")])).item()
        0.5
    """
    log_ess = 2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)
    return torch.exp(log_ess - math.log(len(log_weights)))


def log_mean_exp_error(log_weights: Tensor) -> Tensor:
    r"""Standard error of :func:`log_mean_exp` by the delta method, :math:`\sqrt{(1/\text{ESS} - 1)/n}`."""
    n = len(log_weights)
    return ((1.0 / ess(log_weights) - 1.0).clamp(min=0.0) / n).sqrt()
