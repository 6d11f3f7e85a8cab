"""Objectives beyond Pyro's own, as ELBO classes that any Pyro model/guide pair can use."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

__all__ = ["PathGradientELBO"]


class PathGradientELBO(Trace_ELBO):
    r"""The ELBO with path gradients ("sticking the landing").

    The value is that of ``Trace_ELBO``. Its gradient leaves out the score of the guide,

    .. math:: \nabla_\theta\, E_\epsilon\big[\log \pi(g_\theta(\epsilon))
              - \log q_{\bar\theta}(g_\theta(\epsilon))\big], \quad
              \bar\theta = \theta \text{ held fixed,}

    whose expectation is zero: the gradient stays unbiased, and its noise vanishes where the guide
    matches the target. The density of the guide is evaluated a second time, with its parameters
    held fixed, at the values drawn. Source: Roeder, Wu and Duvenaud (2017), "Sticking the landing:
    simple, lower-variance gradient estimators for variational inference".

    The guide must be a module and reparametrised, but for sites without parameters.

    Raises:
        TypeError: the guide is not a module.
        ValueError: a guide site has parameters but no reparametrised samples.

    Example:
        >>> import torch, pyrocg
        >>> from pyro.infer import SVI
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> elbo = pyrocg.PathGradientELBO()(cg.model, cg.guide)
        >>> elbo(16).requires_grad
        True
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the ELBO, with path gradients."""
        if not isinstance(guide, nn.Module):
            raise TypeError(
                f"expected a guide that is a torch module, got {type(guide).__name__}; "
                "wrap the function, or use Trace_ELBO"
            )
        frozen = _FrozenDensity(guide)
        fixed = {name: parameter.detach() for name, parameter in frozen.named_parameters()}
        loss: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            _check_reparametrised(guide_trace)
            log_q = torch.func.functional_call(frozen, fixed, (guide_trace, args, kwargs))
            loss = loss + (log_q - model_trace.log_prob_sum()) / self.num_particles
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return minus the ELBO and add its path gradients to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch.as_tensor(loss).detach())


class _FrozenDensity(nn.Module):
    """The log density of a guide at the values of a trace."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(
        self, trace: poutine.Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        replayed = poutine.replay(self.guide, trace=trace)
        return poutine.trace(replayed).get_trace(*args, **kwargs).log_prob_sum()


def _check_reparametrised(trace: poutine.Trace) -> None:
    for name, site in trace.nodes.items():
        fn: Any = site.get("fn")
        if site["type"] == "sample" and not fn.has_rsample and not site["is_observed"]:
            score = site.get("log_prob_sum")
            if score is not None and score.requires_grad:
                raise ValueError(
                    f"expected reparametrised samples at guide site {name!r}, which has "
                    "parameters; use Trace_ELBO, or a distribution with rsample"
                )
