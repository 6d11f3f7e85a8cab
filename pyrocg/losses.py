"""The loss with a prior over the decoder's weights, and which losses a training can use."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrocg.weight_priors import WeightPrior, log_prior

__all__ = ["WeightPriorELBO", "check_loss"]


class WeightPriorELBO(ELBO):
    r"""An ELBO with a prior over the decoder's weights, for plain Pyro and for ``fit``.

    .. math:: \text{loss} = -\sum_{i=1}^{n} ELBO_i(\theta) - \frac nN \log p(\theta)

    of n samples, so that divided by n it is :math:`-ELBO - \log p(\theta) / N`: the mode of the
    Gibbs posterior, whatever n. Larger N trusts the prior less.

    Args:
        base: a Pyro ELBO.
        weight_prior: from the named parameters of ``guide.decoder`` to their log density.
        gibbs_scale: N.

    Raises:
        ValueError: N is not above 0, or the prior is a module with parameters of its own, which
            nobody would train.

    Example:
        >>> import pyrocg
        >>> from pyro.infer import Trace_ELBO
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> loss = WeightPriorELBO(Trace_ELBO(), pyrocg.ARDWeightPrior(), gibbs_scale=1e5)
        >>> elbo = loss(cg.model, cg.guide)  # or SVI(cg.model, cg.guide, optimizer, loss)
        >>> elbo(16).requires_grad
        True
    """

    def __init__(self, base: ELBO, weight_prior: WeightPrior, gibbs_scale: float) -> None:
        super().__init__(num_particles=base.num_particles)
        if not 0 < gibbs_scale < math.inf:
            raise ValueError(f"expected a gibbs_scale above 0, got {gibbs_scale}")
        if isinstance(weight_prior, nn.Module) and any(True for _ in weight_prior.parameters()):
            raise ValueError(
                "expected a weight prior without parameters of its own, got a "
                f"{type(weight_prior).__name__} with some; fix them, or make the weights "
                "pyro.sample sites with a hierarchical prior"
            )
        self.base: Any = base
        self.weight_prior, self.gibbs_scale = weight_prior, float(gibbs_scale)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint records of it; of a function its name."""
        prior, text = self.weight_prior, repr(self.weight_prior)
        if " at 0x" in text:  # an address, other in every process
            text = getattr(prior, "__qualname__", type(prior).__qualname__)
        return {"weight_prior": text, "gibbs_scale": self.gibbs_scale}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.base._get_trace(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            penalty = float(self._penalty(guide, *args, **kwargs))
        return self.base.loss(model, guide, *args, **kwargs) + penalty

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor."""
        loss = self.base.differentiable_loss(model, guide, *args, **kwargs)
        return loss + self._penalty(guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number and add its gradients to the parameters."""
        loss = self.base.loss_and_grads(model, guide, *args, **kwargs)
        penalty = self._penalty(guide, *args, **kwargs)
        if penalty.requires_grad:
            penalty.backward()
        return loss + float(penalty.detach())

    def _penalty(self, guide: Any, num_samples: int) -> Tensor:
        decoder = getattr(guide, "decoder", None)
        if not isinstance(decoder, nn.Module):
            raise TypeError(
                f"expected a guide with a module `decoder`, got {type(guide).__name__}; "
                "give the module a decoder, or put the weights' prior into the model by pyro.factor"
            )
        value = log_prior(self.weight_prior, dict(decoder.named_parameters()))
        return -num_samples / self.gibbs_scale * value


def check_loss(loss: ELBO | None) -> None:
    """Refuse a loss that a training cannot use; None is the default one.

    Args:
        loss: a Pyro ELBO; of a :class:`WeightPriorELBO` its base is checked.

    Raises:
        ValueError: it is ``TraceMeanField_ELBO``, or has no differentiable loss.
    """
    if isinstance(loss, WeightPriorELBO):
        loss = loss.base
    if isinstance(loss, TraceMeanField_ELBO):
        raise ValueError(
            "expected an ELBO by samples, got TraceMeanField_ELBO, which is wrong for this pair: "
            "its analytic KL takes u as independent of z; use Trace_ELBO"
        )
    if loss is not None and not hasattr(loss, "differentiable_loss"):
        raise ValueError(
            f"expected an ELBO with a differentiable loss, got {type(loss).__name__}, which has "
            "none; use it with pyro.infer.SVI"
        )
