"""Distributions that Pyro lacks: on the circle, and stratified over components."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = ["MixedNormal", "MoebiusNormal", "StratifiedCategorical", "WrappedNormal", "wrap"]

_TWO_PI = 2.0 * math.pi
_HALF_LOG_TWO_PI = 0.5 * math.log(_TWO_PI)


def wrap(angle: Tensor) -> Tensor:
    """Return the angle's representative in [-π, π), up to rounding, with gradient 1.

    Args:
        angle: in rad, any shape.

    Example:
        >>> import torch
        >>> round(wrap(torch.tensor(4.0)).item(), 4)
        -2.2832
    """
    return angle - _TWO_PI * torch.floor(angle.detach() / _TWO_PI + 0.5)


class WrappedNormal(TorchDistribution):
    r"""The normal distribution wrapped onto the circle, reparametrised.

    .. math:: p(x) = \sum_{m=-\infty}^{\infty} N(x + 2 \pi m \mid \mu, \sigma^2), \quad
              x \in [-\pi, \pi)

    The sum runs over :math:`|m| \le 3`, exact to 1e-7 for the scales that are accepted, up to 4
    (where the density is uniform to 1e-3). Source: Mardia and Jupp (2000), "Directional
    Statistics".

    Args:
        loc: :math:`\mu` in rad, any real.
        scale: :math:`\sigma` in rad, at most 4.

    Example:
        >>> import torch
        >>> x = torch.linspace(-torch.pi, torch.pi, 1001)[:-1]
        >>> density = WrappedNormal(torch.tensor(3.0), torch.tensor(0.5)).log_prob(x).exp()
        >>> round((density.mean() * 2 * torch.pi).item(), 5)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.interval(0.0, 4.0)}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WrappedNormal:
        new = self._get_checked_instance(WrappedNormal, _instance)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        super(WrappedNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return wrap(self.loc + self.scale * noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return wrapped_normal_log_prob(value, self.loc, self.scale)


def wrapped_normal_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Elementwise log density of :class:`WrappedNormal`."""
    images = torch.arange(-3, 4, dtype=value.dtype, device=value.device) * _TWO_PI
    deviation = (wrap(value - loc).unsqueeze(-1) + images) / scale.unsqueeze(-1)
    log_kernels = torch.logsumexp(-0.5 * deviation.square(), dim=-1)
    return log_kernels - scale.log() - _HALF_LOG_TWO_PI


class MoebiusNormal(TorchDistribution):
    r"""The wrapped normal carried along the circle by a Möbius map, reparametrised.

    .. math:: e^{i (x - \mu)} = h_\omega(e^{i \theta}), \quad \theta \sim \mathrm{WN}(0, \sigma),
              \quad h_\omega(z) = \frac{1 - |\omega|^2}{|z - \omega|^2} (z - \omega) - \omega,
              \quad \frac{dx}{d\theta} = \frac{1 - |\omega|^2}{|z - \omega|^2}

    The map concentrates around :math:`-\omega/|\omega|` and thins the other side, which gives the
    skew and the heavy tails that the wrapped normal lacks: at the barrier of a methyl rotor the
    density is :math:`e^{-2\kappa}` of its peak, as in a von Mises distribution, far above that of a
    wrapped normal of the same width. :math:`\omega = 0` is the identity, and
    :math:`h_{-\omega}` the inverse. Source: Rezende et al. (2020), "Normalizing flows on tori and
    spheres", equation 8.

    Args:
        loc: :math:`\mu` in rad, any real, shape ``(...)``.
        scale: :math:`\sigma` in rad, at most 4, shape ``(...)``.
        omega: :math:`(\mathrm{Re}\,\omega, \mathrm{Im}\,\omega)` inside the unit disc, shape
            ``(..., 2)``.

    Example:
        >>> import torch
        >>> x = torch.linspace(-torch.pi, torch.pi, 1001)[:-1]
        >>> d = MoebiusNormal(torch.tensor(3.0), torch.tensor(1.1), torch.tensor([-0.3, 0.1]))
        >>> round((d.log_prob(x).exp().mean() * 2 * torch.pi).item(), 5)
        1.0
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.interval(0.0, 4.0),
        "omega": constraints.real_vector,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, omega: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, real, imaginary = broadcast_all(loc, scale, *omega.unbind(-1))
        self.omega = torch.stack([real, imaginary], dim=-1)
        super().__init__(self.loc.shape, validate_args=validate_args)
        if self._validate_args and not bool((self.omega.square().sum(-1) < 1).all()):
            raise ValueError(
                "expected omega inside the unit disc, got a norm of "
                f"{float(self.omega.norm(dim=-1).max()):.3g}"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> MoebiusNormal:
        new = self._get_checked_instance(MoebiusNormal, _instance)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new.omega = self.omega.expand(*torch.Size(batch_shape), 2)
        super(MoebiusNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        angle, _ = moebius(self.scale * noise, self.omega)
        return wrap(self.loc + angle)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        theta, log_abs_det = moebius(value - self.loc, -self.omega)
        zero = torch.zeros_like(theta)
        return wrapped_normal_log_prob(theta, zero, self.scale) + log_abs_det


def moebius(angle: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angle in (-π, π] that the Möbius map takes an angle to, and its log derivative."""
    a, b = omega.unbind(-1)
    real, imaginary = angle.cos() - a, angle.sin() - b
    slope = (1.0 - a.square() - b.square()) / (real.square() + imaginary.square())
    return torch.atan2(slope * imaginary - b, slope * real - a), slope.log()


class MixedNormal(TorchDistribution):
    r"""Independent coordinates, normal where they are real, wrapped normal where circular.

    Args:
        loc: means, shape ``(..., n)``.
        scale: standard deviations, shape ``(..., n)``; at most 4 rad where circular.
        circular: which coordinates are circular, shape ``(n,)`` of booleans.
        index: indices of the circular and of the real coordinates, where they are at hand: to find
            them takes values of the mask, which a tracer does not have.

    Raises:
        ValueError: the mask has another shape, or a circular coordinate a scale above 4, where the
            sum of :class:`WrappedNormal` is no density.

    Example:
        >>> import torch
        >>> d = MixedNormal(torch.zeros(2), torch.ones(2), torch.tensor([False, True]))
        >>> d.event_shape, round(d.log_prob(torch.tensor([0.0, 2 * torch.pi])).item(), 4)
        (torch.Size([2]), -1.8379)
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        circular: Tensor,
        validate_args: bool | None = None,
        index: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        if circular.shape != self.loc.shape[-1:]:
            raise ValueError(
                f"expected a mask of shape {tuple(self.loc.shape[-1:])}, "
                f"got {tuple(circular.shape)}"
            )
        self.circular = circular
        self.index = index or (circular.nonzero()[:, 0], (~circular).nonzero()[:, 0])
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)
        if self._validate_args and not bool((self.scale <= 4.0)[..., circular].all()):
            raise ValueError(
                "expected scales of at most 4 rad where coordinates are circular, got "
                f"{float(self.scale[..., circular].max()):.3g}; clamp them"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixedNormal:
        new = self._get_checked_instance(MixedNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        new.circular, new.index = self.circular, self.index
        super(MixedNormal, new).__init__(shape[:-1], self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value = self.loc + self.scale * noise
        return torch.where(self.circular, wrap(value), value)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value, loc, scale = torch.broadcast_tensors(value, self.loc, self.scale)
        circular, real = (
            [part.index_select(-1, index) for part in (value, loc, scale)] for index in self.index
        )
        standard = (real[0] - real[1]) / real[2]
        log_real = -0.5 * standard.square() - real[2].log() - _HALF_LOG_TWO_PI
        return log_real.sum(-1) + wrapped_normal_log_prob(*circular).sum(-1)


class StratifiedCategorical(TorchDistribution):
    r"""A categorical distribution whose batch is drawn by systematic sampling.

    Every element has the marginal distribution :math:`P(k) = p_k` exactly, but the elements of
    one batch are stratified: component k comes :math:`\lfloor n p_k \rfloor` or
    :math:`\lceil n p_k \rceil` times among n, so that no component is missed by chance. The order
    is random. Source: Douc and Cappe (2005), "Comparison of resampling schemes for particle
    filtering".

    Args:
        probs: :math:`p_k`, shape ``(n_components,)``.

    Raises:
        ValueError: ``probs`` is not a vector on the simplex.

    Example:
        >>> import torch
        >>> draws = StratifiedCategorical(torch.tensor([0.5, 0.5])).expand([100]).sample()
        >>> draws.sum().item()
        50
    """

    arg_constraints = {"probs": constraints.simplex}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(self, probs: Tensor, validate_args: bool | None = None) -> None:
        if probs.dim() != 1:
            raise ValueError(
                f"expected probs of shape (n_components,), got {tuple(probs.shape)}; "
                "strata are shared by the whole batch"
            )
        self.probs = probs
        super().__init__(torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, len(self.probs) - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StratifiedCategorical:
        new = self._get_checked_instance(StratifiedCategorical, _instance)
        new.probs = self.probs
        super(StratifiedCategorical, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        n, device = shape.numel(), self.probs.device
        with torch.no_grad():
            start = torch.rand((), dtype=torch.float64, device=device)
            offsets = (torch.arange(n, device=device) + start) / n
            edges = self.probs.double().cumsum(0)
            component = torch.searchsorted(edges / edges[-1], offsets, right=True)
            component = component.clamp(max=len(self.probs) - 1)
            return component[torch.randperm(n, device=device)].reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.probs.log()[value.long()].expand(
            torch.broadcast_shapes(value.shape, self.batch_shape)
        )

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(len(self.probs), device=self.probs.device)
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values
