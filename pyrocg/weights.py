"""Importance weights: effective sample size, log Z and shares. Tensors in and out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "bound",
    "component_shares",
    "ess",
    "log_mean_exp",
    "log_mean_exp_error",
    "stratified_summary",
    "training_shares",
]

_LEAST_SHARE = 0.25  # of an equal share, so that a rare component gets samples in every batch


def log_mean_exp(log_weights: Tensor) -> Tensor:
    r"""Return :math:`\log \frac1n \sum_i e^{\ell_i}`, the estimate of log Z.

    Example:
        >>> import torch
        >>> round(log_mean_exp(torch.tensor([0.0, 0.0, float("-inf")])).item(), 4)
        -0.4055
    """
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


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
    r"""Standard error of :func:`log_mean_exp`, :math:`\sqrt{(1/\mathrm{ESS} - 1)/n}`."""
    n = len(log_weights)
    return ((1.0 / ess(log_weights) - 1.0).clamp(min=0.0) / n).sqrt()


def component_shares(log_weights: Tensor, component: Tensor, shares: Tensor) -> Tensor:
    r"""Estimate each component's part of Z, :math:`p_k = Z_k / Z`.

    Weights that are not finite count as 0. A component without weight gets one part in a million,
    so that it can still be sampled. Without any finite weight the shares are returned.

    Args:
        log_weights: log importance weights, shape ``(n,)``.
        component: component of every sample, shape ``(n,)``.
        shares: probabilities that the components were drawn with, shape ``(n_components,)``.

    Example:
        >>> import torch
        >>> log_w, component = torch.tensor([0.0, -torch.inf]), torch.tensor([0, 1])
        >>> component_shares(log_w, component, torch.tensor([0.5, 0.5]))
        tensor([1.0000e+00, 1.0000e-06])
    """
    log_w = _without_infinite(log_weights)
    if not bool(torch.isfinite(log_w).any()):
        return shares
    w = torch.softmax(log_w, 0)
    totals = torch.zeros(len(shares), dtype=w.dtype, device=w.device).index_add_(0, component, w)
    totals = (totals / totals.sum()).clamp(min=1e-6)
    return (totals / totals.sum()).to(shares.dtype)


def training_shares(weights: Tensor) -> Tensor:
    r"""Return the shares that components of the weights :math:`p_k` are trained in.

    .. math:: s_k \propto \max\Big(\frac{\sqrt{p_k}}{\sum_j \sqrt{p_j}}, \frac{1}{4n}\Big),

    normalised, for n components: at least a fifth of an equal share.

    Example:
        >>> import torch
        >>> training_shares(torch.tensor([0.9, 0.1]))
        tensor([0.7500, 0.2500])
    """
    shares = weights.sqrt() / weights.sqrt().sum()
    shares = shares.clamp(min=_LEAST_SHARE / len(shares))
    return shares / shares.sum()


def bound(log_weights: Tensor) -> Tensor:
    r"""ELBO of the generator restricted to where its weights are finite.

    .. math:: \frac1m \sum_{w_i > 0} \log w_i + \log \frac mn

    with m of n weights finite and above 0. Without such weights this is the mean log weight; with
    them that mean is minus infinity, and this the bound of the generator conditioned on finite
    energies, still at most log Z.

    Args:
        log_weights: shape ``(n,)``; minus infinity or NaN where the energy is not finite.

    Example:
        >>> import torch
        >>> round(bound(torch.tensor([1.0, -torch.inf])).item(), 4)
        0.3069
    """
    finite = log_weights[torch.isfinite(log_weights)]
    if len(finite) == 0:
        return log_weights.new_tensor(-torch.inf)
    return finite.mean() + math.log(len(finite) / len(log_weights))


def stratified_summary(
    log_weights: Tensor, component: Tensor, shares: Tensor
) -> tuple[float, float, float]:
    r"""ELBO, log Z and ESS that a mixture latent has with the shares :math:`p_k = Z_k/Z`.

    .. math:: \sum_k p_k (\mathrm{ELBO}_k - \log p_k), \quad \log \sum_k Z_k, \quad
              \Big(\sum_k p_k / \mathrm{ESS}_k\Big)^{-1}

    from samples drawn with other shares. Weights that are not finite count as 0, for the ELBO see
    :func:`bound`; components without a finite weight are left out.

    Args:
        log_weights: log importance weights, shape ``(n,)``.
        component: component of every sample, shape ``(n,)``.
        shares: probabilities that the components were drawn with, shape ``(n_components,)``.

    Example:
        >>> import torch
        >>> log_w, component = torch.tensor([0.0, 2.0]), torch.tensor([0, 1])
        >>> [round(v, 4) for v in stratified_summary(log_w, component, torch.tensor([0.5, 0.5]))]
        [1.4338, 1.4338, 1.0]
    """
    log_w = _without_infinite(log_weights + shares.log()[component])
    rows = []
    for k in range(len(shares)):
        own = log_w[component == k]
        if bool(torch.isfinite(own).any()):
            rows.append(torch.stack([bound(own), log_mean_exp(own), ess(own)]))
    if not rows:
        return -math.inf, -math.inf, 0.0
    elbo, log_z, fraction = torch.stack(rows, 1)
    p = torch.softmax(log_z, 0)
    return (
        float((p * elbo + torch.special.entr(p)).sum()),
        float(torch.logsumexp(log_z, 0)),
        float(1.0 / (p / fraction).sum()),
    )


def _without_infinite(log_weights: Tensor) -> Tensor:
    """The same in float64, minus infinity where not finite."""
    return torch.where(torch.isfinite(log_weights), log_weights.double(), -torch.inf)
