"""Priors over the latent variables: modules whose call returns a Pyro distribution, or programs.

A *program* is a module that makes its own ``pyro.sample`` statements, among them the site "z",
and returns the latents that the decoder is called with.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrocg.distributions import StratifiedCategorical
from pyrocg.networks import MLP

__all__ = [
    "DistributionPrior",
    "FlowPrior",
    "GaussianMixturePrior",
    "PriorProgram",
    "StandardNormalPrior",
    "StratifiedPrior",
    "TorusPrior",
    "as_prior",
]


class StandardNormalPrior(nn.Module):
    r"""The standard normal prior, :math:`p(z) = N(0, I)`.

    Args:
        latent_dim: dimension of z.

    Example:
        >>> StandardNormalPrior(2)().event_shape
        torch.Size([2])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class TorusPrior(nn.Module):
    r"""The uniform prior on the torus, :math:`p(z) = (2\pi)^{-d}` on :math:`[-\pi, \pi)^d`.

    A decoder sees the torus through (cos z, sin z): pass ``circular_latent=True`` to it.

    Args:
        latent_dim: dimension d of z.
    """

    bound: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("bound", torch.full((latent_dim,), torch.pi), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        return dist.Uniform(-self.bound, self.bound).to_event(1)


class GaussianMixturePrior(nn.Module):
    r"""A learned mixture of Gaussians, :math:`p(z) = \sum_j w_j N(z \mid m_j, \sigma_j^2)`.

    Samples are drawn with gradients of means and scales by the pathwise derivative of mixtures.

    Args:
        latent_dim: dimension of z.
        n_components: number of Gaussians.
        spread: standard deviation of the initial means.
    """

    def __init__(self, latent_dim: int, n_components: int, spread: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.loc = nn.Parameter(spread * torch.randn(n_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(n_components, latent_dim))

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        return dist.MixtureOfDiagNormals(self.loc, self.log_scale.exp(), self.logits)


class FlowPrior(nn.Module):
    r"""A learned normalising flow, :math:`z = f(\epsilon)`, :math:`\epsilon \sim N(0, I)`.

    .. math:: \log p(z) = \log N(\epsilon \mid 0, I) - \log|\det \partial f/\partial \epsilon|,
              \quad \epsilon = f^{-1}(z)

    f is a rational spline of every coordinate, then coupling layers in which one half of z goes
    through splines whose shape depends on the other half; in between the coordinates are
    reversed. Each is the identity at the start, and always outside :math:`[-5, 5]`. In one
    dimension f is the spline alone. The inverse is in closed form, so densities are exact.
    Source: Durkan, Bekasov, Murray and Papamakarios (2019), "Neural spline flows"; Dolatabadi,
    Erfani and Leckie (2020), "Invertible generative modeling using linear rational splines".

    Args:
        latent_dim: dimension of z.
        n_couplings: number of coupling layers; two reach every coordinate.
        hidden: sizes of the hidden layers of each coupling.

    Example:
        >>> import torch
        >>> prior = FlowPrior(2)
        >>> round(prior().log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    loc: Tensor
    reversal: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_couplings: int = 4,
        hidden: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("reversal", torch.arange(latent_dim).flip(0), persistent=False)
        self.spline = transforms.Spline(latent_dim, _BINS, _BOUND)
        with torch.no_grad():
            for parameter in self.spline.parameters():
                parameter.zero_()
            self.spline.unnormalized_derivatives.fill_(_UNIT_SLOPE)
        self.couplings = nn.ModuleList(
            _spline_coupling(latent_dim, hidden)
            for _ in range(n_couplings if latent_dim > 1 else 0)
        )

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        # a Pyro transform remembers its last point: with a copy, each distribution has its own
        parts: list[Any] = [copy.copy(self.spline)]
        for coupling in self.couplings:
            parts += [transforms.Permute(self.reversal), copy.copy(coupling)]
        base = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return dist.TransformedDistribution(base, parts)


_BOUND, _BINS = 5.0, 8
_UNIT_SLOPE = math.log(math.expm1(1.0 - 1e-3))  # softplus of it, plus Pyro's 1e-3, is 1


def _spline_coupling(dim: int, hidden: Sequence[int]) -> nn.Module:
    """Build a coupling that is the identity."""
    kept = dim // 2
    network = _SplineShapes(kept, hidden, dim - kept)
    coupling = transforms.SplineCoupling(dim, kept, network, _BINS, _BOUND, identity=True)
    coupling.lower_spline = None  # of the kept half, unused: it would be a parameter without use
    return coupling


class _SplineShapes(nn.Module):
    """Widths, heights, slopes and divisions of splines, bounded so that no bin degenerates."""

    def __init__(self, n_in: int, hidden: Sequence[int], n_splines: int) -> None:
        super().__init__()
        self.sizes = [n_splines * n for n in (_BINS, _BINS, _BINS - 1, _BINS)]
        self.network = MLP(n_in, hidden, sum(self.sizes), zero_output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        shapes = 2.0 * torch.tanh(0.5 * self.network(x))
        widths, heights, slopes, divisions = shapes.split(self.sizes, dim=-1)
        return widths, heights, _UNIT_SLOPE + slopes, divisions


class DistributionPrior(nn.Module):
    """A fixed Pyro distribution as prior. Its tensors follow ``.to()`` and ``.double()``.

    Args:
        distribution: over z, with event shape ``(latent_dim,)`` and no batch shape. It is not
            trained and not saved: a prior with parameters is a module or a program.

    Raises:
        ValueError: the shapes are others or a tensor requires gradients, with the remedy.
    """

    def __init__(self, distribution: TorchDistributionMixin) -> None:
        super().__init__()
        if len(distribution.event_shape) != 1 or len(distribution.batch_shape) != 0:
            raise ValueError(
                "expected a distribution with event shape (latent_dim,) and no batch shape, got "
                f"event shape {tuple(distribution.event_shape)} and batch shape "
                f"{tuple(distribution.batch_shape)}; declare dimensions with .to_event(1)"
            )
        learned = []

        def note(tensor: Tensor) -> Tensor:
            learned.append(tensor.requires_grad)
            return tensor

        _map_tensors(distribution, note)
        if any(learned):
            raise ValueError(
                "expected a fixed distribution, got tensors that require gradients, which would "
                "not be trained; write a module whose call returns the distribution, or a Pyro "
                "program"
            )
        self.distribution = distribution

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        return self.distribution

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistributionPrior:
        self.distribution = _map_tensors(self.distribution, fn)
        return super()._apply(fn, recurse)


def _map_tensors(
    value: Any, function: Callable[[Tensor], Tensor], seen: dict[int, Any] | None = None
) -> Any:
    """Return a distribution with a function applied to all its tensors."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, weakref.ref):  # of a transform to its inverse
        return None
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(item, function, seen) for item in value)
    if isinstance(value, dict):
        items = value.items()
        return type(value)((key, _map_tensors(item, function, seen)) for key, item in items)
    if isinstance(value, (torch.distributions.Distribution, transforms.Transform, nn.Module)):
        if id(value) not in seen:  # a transform and its inverse refer to each other
            seen[id(value)] = new = copy.copy(value)
            new.__dict__.update(_map_tensors(vars(value), function, seen))
        return seen[id(value)]
    return value


class PriorProgram(nn.Module):
    """A user's Pyro program as prior, with hyper-parameters, sub-sites, anything.

    The program is called without arguments inside the plate over samples, must have a sample
    site "z" and returns z, or a tuple of latents that the decoder is called with. Its other
    sites are auxiliary variables: unless the encoder is a program that has them too, the model
    draws them from this program, p(h | u, z) ≈ p(h), which keeps the ELBO a bound.

    Args:
        program: a callable without arguments; a ``PyroModule`` keeps its parameters registered.
    """

    def __init__(self, program: Callable[[], Any]) -> None:
        super().__init__()
        self.program = program

    def forward(self) -> Any:
        """Run the program, return its latents."""
        return self.program()


class StratifiedPrior(nn.Module):
    r"""A mixture latent that keeps every component, :math:`p(k, z) = p_k\, p(z)`.

    Sites: "component" k from :class:`~pyrocg.distributions.StratifiedCategorical`, "z" from
    the latent prior. Returns ``(z, component)``. :func:`~pyrocg.training.fit` trains it in shares
    in which every component learns; at the end :meth:`set_shares` gives them their weights.

    Args:
        n_components: number of components.
        latent: prior of z, a module whose call returns a distribution.
    """

    shares: Tensor

    def __init__(self, n_components: int, latent: nn.Module) -> None:
        super().__init__()
        self.latent = latent
        self.register_buffer("shares", torch.full((n_components,), 1.0 / n_components))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Draw the two sites."""
        component = pyro.sample("component", StratifiedCategorical(self.shares))
        return pyro.sample("z", self.latent()), component

    def set_shares(self, shares: Tensor) -> None:
        """Set the probabilities of the components, shape ``(n_components,)``; they are normalised.

        Raises:
            ValueError: wrong shape, or a share that is negative, zero or not finite.
        """
        if shares.shape != self.shares.shape or not bool((shares > 0).all()):
            raise ValueError(
                f"expected {len(self.shares)} positive shares, got {shares.tolist()}; "
                "a component with share 0 would never be sampled"
            )
        self.shares.copy_(shares / shares.sum())


def as_prior(prior: Any) -> nn.Module:
    """Return a prior module from a module, a Pyro distribution or a Pyro program.

    Raises:
        TypeError: ``prior`` is none of them.
    """
    if isinstance(prior, nn.Module) and not isinstance(prior, pyro.nn.PyroModule):
        return prior
    if isinstance(prior, TorchDistributionMixin):
        return DistributionPrior(prior)
    if callable(prior):
        return PriorProgram(prior)
    raise TypeError(
        "expected a prior module, a Pyro distribution or a Pyro program, "
        f"got {type(prior).__name__}"
    )
