"""What holds for a while: seeded random numbers, and a model as it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.priors import StratifiedPrior

__all__ = ["at_target", "gpus_of", "seeded"]


def gpus_of(tensors: Iterable[Tensor]) -> list[int]:
    """Return the indices of the GPUs that hold one of the tensors, in order.

    Args:
        tensors: what is computed with, such as the parameters of a model.

    Example:
        >>> import torch
        >>> gpus_of([torch.zeros(2)])
        []
    """
    return sorted({t.device.index or 0 for t in tensors if t.is_cuda})


@contextmanager
def seeded(seed: int, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Seed the random numbers; afterwards the global generators are as they were.

    Args:
        seed: of the generators of the CPU and of every GPU that holds one of the tensors.
        tensors: what is computed with, such as the parameters of a model.

    Example:
        >>> import torch
        >>> with seeded(3, []):
        ...     first = torch.rand(())
        >>> with seeded(3, []):
        ...     bool(first == torch.rand(()))
        True
    """
    devices = gpus_of(tensors)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds every GPU
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


@contextmanager
def at_target(
    model: CoarseGrainedModel, shares: Callable[[Tensor], Tensor] | None = None
) -> Iterator[None]:
    """Put t to 1, and the components of a mixture latent to other shares, for a while.

    Args:
        model: as it was afterwards, bit by bit.
        shares: from the weights of the components, shape ``(n_components,)``, to the shares that
            they are sampled in; default the weights.

    Example:
        >>> import pyrocg
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0),
        ...     pyrocg.IdentityCoordinates(2),
        ...     latent_dim=1,
        ... )
        >>> cg.temper = 0.5
        >>> with at_target(cg):
        ...     cg.temper
        1.0
        >>> cg.temper
        0.5
    """
    t, prior = model.temper, model.prior
    before = prior.shares.clone() if isinstance(prior, StratifiedPrior) else None
    try:
        model.temper = 1.0
        if isinstance(prior, StratifiedPrior) and shares is not None:
            prior.set_shares(shares(prior.shares))
        yield
    finally:
        model.temper = t
        if isinstance(prior, StratifiedPrior) and before is not None:
            prior.shares.copy_(before)
