"""Collective variables as functions of positions, to bias dynamics along: here or in OpenMM."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.encoders import PartitionEncoder

__all__ = ["BasinVariable", "LatentVariable", "openmm_force"]


class BasinVariable(nn.Module):
    r"""How far a configuration is inside of some basins rather than the others.

    .. math:: s(x) = \log \sum_{k \in A} r(k|u) - \log \sum_{k \notin A} r(k|u), \quad x = T(u)

    It is smooth, above 0 inside of the basins A and below 0 outside. The partition r(k|u) does not
    learn, so this can be had before training.

    Args:
        model: one with basins, see :meth:`~pyrocg.cgmodel.CoarseGrainedModel.from_basins`.
        inside: components k of A, counted from 0.

    Raises:
        ValueError: the model has no partition, or A is empty, everything, or not of its components.

    Example:
        >>> import torch, pyrocg
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0),
        ...     pyrocg.IdentityCoordinates(2),
        ...     latent_dim=1,
        ... )
        >>> s = BasinVariable(cg, inside=[0])
        >>> bool(s(torch.tensor([[-2.5, 0.0]])) * s(torch.tensor([[2.5, 0.0]])) < 0)
        True
    """

    inside: Tensor

    def __init__(self, model: CoarseGrainedModel, inside: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(model.encoder, PartitionEncoder):
            raise ValueError(
                f"expected a model with a partition into basins, got {type(model.encoder).__name__}"
                "; use CoarseGrainedModel.from_basins, or LatentVariable"
            )
        self.coordinates = _frozen(model.coordinates)
        self.partition = _frozen(model.encoder.partition)
        n, chosen = len(model.prior.shares), sorted({int(k) for k in inside})
        if not 0 < len(chosen) < n or not 0 <= chosen[0] <= chosen[-1] < n:
            raise ValueError(
                f"expected some, not all, of the components 0 to {n - 1}, got {list(inside)}"
            )
        self.register_buffer("inside", torch.isin(torch.arange(n), torch.tensor(chosen)))

    def forward(self, x: Tensor) -> Tensor:
        """Return s of shape ``(...)`` for x of shape ``(..., *event_shape)``, nm for molecules."""
        u, _ = self.coordinates.inverse(x.double())
        log_r = self.partition(u).logits
        a, b = log_r[..., self.inside], log_r[..., ~self.inside]
        return (a.logsumexp(-1) - b.logsumexp(-1)).to(x.dtype)


class LatentVariable(nn.Module):
    r"""One collective variable as the encoder's mean, :math:`s(x) = E_{r(z|u)}[z_i]`.

    Args:
        model: trained; what it learns later does not change this.
        index: i, counted from 0.
        component: k of a model with basins, whose z mean something of their own in each:
            :math:`E_{r(z|u,k)}[z_i]`. None for other models.

    Raises:
        ValueError: a component is missing, or not of this model; there is no such latent; z is on
            a torus; or the encoder is a program.

    Example:
        >>> import torch, pyrocg
        >>> coordinates = pyrocg.IdentityCoordinates(2)
        >>> cg = pyrocg.CoarseGrainedModel(
        ...     pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0),
        ...     coordinates,
        ...     prior=pyrocg.StandardNormalPrior(1),
        ...     decoder=pyrocg.GaussianDecoder(coordinates.circular, latent_dim=1),
        ...     encoder=pyrocg.GaussianEncoder(coordinates.circular, latent_dim=1),
        ... )
        >>> LatentVariable(cg)(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self, model: CoarseGrainedModel, index: int = 0, component: int | None = None
    ) -> None:
        super().__init__()
        encoder: nn.Module = model.encoder
        mixed = isinstance(encoder, PartitionEncoder)
        if mixed and (component is None or not 0 <= component < len(model.prior.shares)):
            raise ValueError(
                f"expected a component from 0 to {len(model.prior.shares) - 1}, got {component}; "
                "z of a model with basins means something of its own in each"
            )
        if not mixed and component is not None:
            raise ValueError(f"expected no component of a model without basins, got {component}")
        self.coordinates = _frozen(model.coordinates)
        self.encoder = _frozen(
            encoder.encoder if isinstance(encoder, PartitionEncoder) else encoder
        )
        if getattr(self.encoder, "circular_latent", False):
            raise ValueError(
                "expected real latents, got a torus, where z has no mean; write a variable of "
                "cos z and sin z"
            )
        self.index, self.component = index, component
        with torch.no_grad():
            latent_dim = self._mean(self.coordinates.origin[None]).shape[-1]
        if not 0 <= index < latent_dim:
            raise ValueError(f"expected an index from 0 to {latent_dim - 1}, got {index}")

    def forward(self, x: Tensor) -> Tensor:
        """Return s of shape ``(...)`` for x of shape ``(..., *event_shape)``, nm for molecules."""
        u, _ = self.coordinates.inverse(x.double())
        return self._mean(u)[..., self.index].to(x.dtype)

    def _mean(self, u: Tensor) -> Tensor:
        if self.component is None:
            found = self.encoder(u)
        else:
            k = torch.full(u.shape[:-1], self.component, dtype=torch.long, device=u.device)
            found = self.encoder(u, k)
        if not isinstance(found, TorchDistributionMixin):
            raise ValueError(
                f"expected an encoder that returns a distribution, got {type(found).__name__}; "
                "give one that does"
            )
        return found.mean


class _Evaluation:
    """What OpenMM calls: the value of a variable and the negative of its gradient."""

    def __init__(self, variable: nn.Module) -> None:
        self.variable = variable

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        positions = np.array(state.getPositions(asNumpy=True)._value, dtype=np.float64)
        x = torch.from_numpy(positions)[None].requires_grad_()
        with torch.enable_grad():
            value = self.variable(x).sum()
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), -gradient[0].numpy()


def openmm_force(variable: nn.Module) -> Any:
    """Return an ``openmm.PythonForce`` whose energy is a collective variable.

    Put it into an ``openmm.CustomCVForce`` for a bias of your own, or into an
    ``openmm.app.BiasVariable`` for metadynamics. OpenMM calls Python in every step then, which
    takes a millisecond or so.

    Args:
        variable: from positions, shape ``(1, n_atoms, 3)`` in nm and double precision, to a value,
            shape ``(1,)``; differentiable, and it must pickle, as the variables here do.

    Raises:
        ImportError: this OpenMM has no ``PythonForce``.
    """
    try:
        from openmm import PythonForce
    except ImportError as error:
        import openmm

        raise ImportError(
            f"expected an OpenMM with PythonForce, got {openmm.__version__}; install a newer one"
        ) from error
    return PythonForce(_Evaluation(variable))


def _frozen(module: nn.Module) -> Any:
    """A copy in double precision, on the CPU, that nothing trains."""
    return copy.deepcopy(module).cpu().double().requires_grad_(False)
