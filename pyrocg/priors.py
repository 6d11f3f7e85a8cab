"""Priors over the latent variables: modules whose call returns a Pyro distribution, or programs.

A *program* is a module that makes its own ``pyro.sample`` statements, among them the site "z",
and returns the latents that the decoder is called with.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrocg.distributions import StratifiedCategorical
from pyrocg.flow_prior import FlowPrior

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

    A decoder sees the torus through (cos z, sin z), and an encoder is a density on it: pass
    ``circular_latent=True`` to both.

    Args:
        latent_dim: dimension d of z.

    Example:
        >>> import torch
        >>> round(TorusPrior(1)().log_prob(torch.tensor([3.0])).exp().item(), 4)
        0.1592
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

    Example:
        >>> GaussianMixturePrior(2, n_components=3)().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, n_components: int, spread: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.loc = nn.Parameter(spread * torch.randn(n_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(n_components, latent_dim))

    def forward(self) -> TorchDistributionMixin:
        """Return p(z)."""
        return dist.MixtureOfDiagNormals(self.loc, self.log_scale.exp(), self.logits)


class DistributionPrior(nn.Module):
    """A fixed Pyro distribution as prior. Its tensors follow ``.to()`` and ``.double()``.

    Args:
        distribution: over z, with event shape ``(latent_dim,)`` and no batch shape. It is not
            trained and not saved: a prior with parameters is a module or a program.

    Raises:
        ValueError: the shapes are others or a tensor requires gradients, with the remedy.

    Example:
        >>> prior = DistributionPrior(dist.StudentT(4.0, torch.zeros(2)).to_event(1))
        >>> prior.double()().sample().dtype
        torch.float64
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

    Example:
        >>> def hierarchical():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        ...     scale = scale.unsqueeze(-1)
        ...     return pyro.sample("z", dist.Normal(torch.zeros(1), scale).to_event(1))
        >>> with pyro.plate("samples", 5):
        ...     z = PriorProgram(hierarchical)()
        >>> z.shape
        torch.Size([5, 1])
    """

    def __init__(self, program: Callable[[], Any]) -> None:
        super().__init__()
        self.program = program

    def forward(self) -> Any:
        """Run the program, return its latents, or the distribution of z.

        Raises:
            ValueError: the program gives no distribution and has no site "z".
        """
        with poutine.trace() as traced:
            latents = self.program()
        if "z" not in traced.trace.nodes and not isinstance(latents, TorchDistributionMixin):
            raise ValueError(
                f"expected a prior program with a sample site 'z', got {list(traced.trace.nodes)}; "
                'name it: pyro.sample("z", ...)'
            )
        return latents


class StratifiedPrior(nn.Module):
    r"""A mixture latent that keeps every component, :math:`p(k, z) = p_k\, p(z)`.

    Sites: "component" k from :class:`~pyrocg.distributions.StratifiedCategorical`, "z" from
    the latent prior. Returns ``(z, component)``. :func:`~pyrocg.training.fit` trains it in shares
    in which every component learns; at the end :meth:`set_shares` gives them their weights.

    Args:
        n_components: number of components.
        latent: prior of z, a module whose call returns a distribution.

    Example:
        >>> with pyro.plate("samples", 6):
        ...     z, component = StratifiedPrior(3, StandardNormalPrior(2))()
        >>> z.shape, component.bincount().tolist()
        (torch.Size([6, 2]), [2, 2, 2])
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
        valid = (shares > 0) & shares.isfinite()
        if shares.shape != self.shares.shape or not bool(valid.all()):
            raise ValueError(
                f"expected {len(self.shares)} positive, finite shares, got {shares.tolist()}; "
                "a component with share 0 would never be sampled"
            )
        self.shares.copy_(shares / shares.sum())


def as_prior(prior: Any) -> nn.Module:
    """Return a prior module from a module, a Pyro distribution or a Pyro program.

    Args:
        prior: any of them.

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
