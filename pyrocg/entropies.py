"""Closed-form entropies of the noise behind a distribution's samples."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from pyrocg.decoders import CouplingDistribution
from pyrocg.distributions import (
    MixedNormal,
    MoebiusNormal,
    StratifiedCategorical,
    WrappedNormal,
    moebius,
    wrapped_normal_log_prob,
)

__all__ = ["expected_log_prob", "wrapped_normal_entropy"]

_GAUSSIAN_BELOW = 0.5  # rad; narrower, wrapping changes the entropy by less than 1e-8
_TERMS, _SQUARE_TERMS = 100, 16  # e^{-n σ²} and e^{-n² σ²/2} at 0.5 rad
_HALF_LOG_TWO_PI_E = 0.5 * (1.0 + math.log(2.0 * math.pi))


def wrapped_normal_entropy(scale: Tensor) -> Tensor:
    r"""Return the entropy of the wrapped normal distribution, from its product form.

    .. math:: H = \log 2\pi - \sum_{n \ge 1} \log(1 - q^{2n})
              + 2 \sum_{m \ge 1} \frac{(-1)^m}{m} \frac{q^{m^2 + m}}{1 - q^{2m}}, \quad
              q = e^{-\sigma^2/2},

    and that of the normal distribution where :math:`\sigma < 0.5`. Source: Mardia and Jupp (2000),
    "Directional Statistics".

    Args:
        scale: :math:`\sigma` in rad, any shape.

    Example:
        >>> import torch
        >>> wrapped_normal_entropy(torch.tensor([0.1, 4.0])).round(decimals=4)
        tensor([-0.8836,  1.8379])
    """
    variance = scale.clamp(min=_GAUSSIAN_BELOW).square().unsqueeze(-1)
    n = torch.arange(1, _TERMS + 1, dtype=scale.dtype, device=scale.device)
    product = -torch.log1p(-torch.exp(-n * variance)).sum(-1)
    m = n[:_SQUARE_TERMS]
    sign = 1.0 - 2.0 * (m % 2)
    ratio = torch.exp(-0.5 * m * (m + 1) * variance) / -torch.expm1(-m * variance)
    wide = math.log(2 * math.pi) + product + 2 * (sign / m * ratio).sum(-1)
    narrow = scale.clamp(max=_GAUSSIAN_BELOW).log() + _HALF_LOG_TWO_PI_E
    return torch.where(scale < _GAUSSIAN_BELOW, narrow, wide)


@singledispatch
def expected_log_prob(fn: Any, value: Tensor, log_prob: Tensor) -> Tensor:
    r"""Log density at a sample, with what is known of its noise replaced by its expectation.

    A sample is :math:`u = g(\epsilon)` of noise with a known entropy H, so

    .. math:: E[\log q(u)] = -H(\epsilon) - E[\log|\partial g/\partial\epsilon|],

    where the second part is taken at the sample. For a normal distribution it is constant, and
    this is minus the entropy. Distributions of other packages: anything with an ``entropy()``.
    Register others by ``expected_log_prob.register(Class)``.

    Args:
        fn: the distribution.
        value: a sample of it, shape ``(*batch_shape, *event_shape)``.
        log_prob: the log density there, shape ``(*batch_shape)``.

    Raises:
        ValueError: the entropy of the noise has no closed form.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> fn, value = dist.Normal(0.0, 1.0), torch.tensor(3.0)
        >>> expected_log_prob(fn, value, fn.log_prob(value))
        tensor(-1.4189)
    """
    try:
        entropy: Tensor = fn.entropy()
    except NotImplementedError:
        raise ValueError(
            f"expected a distribution whose entropy has a closed form, got {type(fn).__name__}; "
            "use Trace_ELBO or PathGradientELBO, or register it with expected_log_prob"
        ) from None
    return -entropy


@expected_log_prob.register
def _independent(fn: Independent, value: Tensor, log_prob: Tensor) -> Tensor:
    found = expected_log_prob(fn.base_dist, value, fn.base_dist.log_prob(value))
    found = found.expand(fn.base_dist.batch_shape)
    return sum_rightmost(found, fn.reinterpreted_batch_ndims)


@expected_log_prob.register
def _transformed(fn: TransformedDistribution, value: Tensor, log_prob: Tensor) -> Tensor:
    noise, base = value, fn.base_dist
    for transform in reversed(fn.transforms):
        noise = transform.inv(noise)
    at_noise = base.log_prob(noise)
    change = expected_log_prob(base, noise, at_noise) - at_noise
    return log_prob + sum_rightmost(change, change.dim() - log_prob.dim())


@expected_log_prob.register
def _stratified(fn: StratifiedCategorical, value: Tensor, log_prob: Tensor) -> Tensor:
    return torch.xlogy(fn.probs, fn.probs).sum().expand(log_prob.shape)


@expected_log_prob.register
def _wrapped(fn: WrappedNormal, value: Tensor, log_prob: Tensor) -> Tensor:
    return -wrapped_normal_entropy(fn.scale)


@expected_log_prob.register
def _mixed(fn: MixedNormal, value: Tensor, log_prob: Tensor) -> Tensor:
    real, circular = ~fn.circular, fn.circular
    normal = fn.scale[..., real].log() + _HALF_LOG_TWO_PI_E
    return -normal.sum(-1) - wrapped_normal_entropy(fn.scale[..., circular]).sum(-1)


@expected_log_prob.register
def _moebius(fn: MoebiusNormal, value: Tensor, log_prob: Tensor) -> Tensor:
    noise, _ = moebius(value - fn.loc, -fn.omega)
    at_noise = wrapped_normal_log_prob(noise, torch.zeros_like(noise), fn.scale)
    return log_prob - at_noise - wrapped_normal_entropy(fn.scale)


@expected_log_prob.register
def _coupling(fn: CouplingDistribution, value: Tensor, log_prob: Tensor) -> Tensor:
    change = torch.zeros_like(log_prob)
    for torsions, tau in fn.torsions(value):
        at_tau = torsions.log_prob(tau)
        change = change + (expected_log_prob(torsions, tau, at_tau) - at_tau).sum(-1)
    with torch.no_grad():  # the noise of a reparametrised sample depends on no parameter
        noise, _ = fn.noise(value)
    return log_prob + change + 0.5 * (noise.square() - 1.0).sum(-1)
