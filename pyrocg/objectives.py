"""Objectives beyond Pyro's own, as ELBO classes that any Pyro model/guide pair can use."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrocg.entropies import expected_log_prob
from pyrocg.networks import in_place_of

__all__ = ["AnalyticEntropyELBO", "ForwardKLELBO", "PathGradientELBO"]


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
        fixed = {id(parameter): parameter.detach() for parameter in frozen.parameters()}
        loss: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            _check_reparametrised(guide_trace)
            with in_place_of(frozen, fixed):
                log_q = frozen(guide_trace, args, kwargs)
            loss = loss + (log_q - model_trace.log_prob_sum()) / self.num_particles
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return minus the ELBO and add its path gradients to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch.as_tensor(loss).detach())


class AnalyticEntropyELBO(Trace_ELBO):
    r"""The ELBO with the entropy of the guide's noise in closed form.

    .. math:: E_q[\log \pi(g(\epsilon))] + H(\epsilon)
              + E_q\left[\log\left|\frac{\partial g}{\partial \epsilon}\right|\right], \quad
              z, u = g(\epsilon),

    at every sample site: of p(z) the entropy, of a Gaussian decoder the entropy given z, of a flow
    the entropy of its base and the log determinant at the sample. Its expectation is the ELBO.

    It is no better than ``Trace_ELBO`` where it matters: along a reparametrised sample the density
    of normal noise is constant, so for a guide of normal distributions the gradients are *the same,
    draw by draw*; they differ a little where noise is wrapped onto a circle. Its values have less
    noise while the guide is far from the target, but more near it, where log weights are constant
    and entropies are not what they consist of. :class:`PathGradientELBO` has less noise there.
    Source: Kucukelbir and others (2017), "Automatic differentiation variational inference",
    equation 5, for a standard normal distribution and its transforms.

    The guide must be reparametrised, but for sites without parameters.

    Raises:
        ValueError: the entropy of a guide site has no closed form (mixtures, von Mises), or a site
            has parameters but no reparametrised samples.

    Example:
        >>> import torch, pyrocg
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> elbo = AnalyticEntropyELBO()(cg.model, cg.guide)
        >>> elbo(16).requires_grad
        True
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the ELBO."""
        loss: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            _check_reparametrised(guide_trace)
            log_q = _expected_log_prob_sum(guide_trace)
            loss = loss + (log_q - model_trace.log_prob_sum()) / self.num_particles
        return loss

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return minus the ELBO as a number."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return minus the ELBO and add its gradients to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch.as_tensor(loss).detach())


def _expected_log_prob_sum(trace: poutine.Trace) -> Any:
    """Sum over sites and plates of :func:`expected_log_prob`, with scales and masks."""
    total: Any = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            log_prob: Any = site["unscaled_log_prob"]
            if not site["is_observed"]:
                fn: Any = site["fn"]
                log_prob = expected_log_prob(fn, site["value"], log_prob).expand(log_prob.shape)
            total = total + scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
    return total


class ForwardKLELBO(Trace_ELBO):
    r"""The importance-weighted forward KL divergence, which covers mass instead of seeking modes.

    Its value, for n samples in a plate, is n times an estimate of the evidence upper bound,

    .. math:: \sum_i \bar w_i \log w_i \approx E_\pi[\log w] = \log Z + KL(\pi \| q), \quad
              w_i = \pi(x_i) / q(x_i), \quad \bar w_i = w_i / \sum_j w_j,

    with samples of the guide itself. The guide's gradient is
    :math:`-\sum_i \bar w_i \nabla \log q(x_i)`, samples and weights held fixed, so neither
    reparametrised samples nor forces are used. Parameters of the model, the encoder's, get the
    gradient of the ELBO. The weights are self-normalised over the plate: biased for few samples,
    and blind to what the guide never proposes. Source: Bornschein and Bengio (2015), "Reweighted
    wake-sleep"; Müller and others (2019), "Neural importance sampling".

    Raises:
        ValueError: a sample site has other than one plate, or no weight is finite.

    Example:
        >>> import torch, pyrocg
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> elbo = pyrocg.ForwardKLELBO()(cg.model, cg.guide)
        >>> elbo(16).requires_grad
        True
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return n times the upper bound, with the gradients above."""
        loss: Any = 0.0
        for _ in range(self.num_particles):
            with torch.no_grad():
                drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            log_q, log_pi = (
                _of_each_sample(poutine.trace(poutine.replay(f, trace=drawn)), args, kwargs)
                for f in (guide, model)
            )
            log_w = (log_pi - log_q).detach()
            log_w = torch.where(log_w.isfinite(), log_w, -torch.inf)
            if not bool(log_w.isfinite().any()):
                raise ValueError("expected finite weights, got none; start closer to the target")
            w = torch.softmax(log_w, -1)
            value = torch.where(w > 0, w * log_w, 0.0).sum()
            covered = (w * (log_q.detach() - log_q)).sum()
            encoded = torch.where(log_pi.isfinite(), log_pi.detach() - log_pi, 0.0).mean()
            loss = loss + len(w) * (value + covered + encoded) / self.num_particles
        return loss

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return n times the upper bound as a number."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return n times the upper bound and add the gradients to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())


def _of_each_sample(traced: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Log density of each element of the one plate, summed over sites."""
    trace = traced.get_trace(*args, **kwargs)
    trace.compute_log_prob()
    total: Any = 0.0
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            if len(site["cond_indep_stack"]) != 1:
                raise ValueError(
                    f"expected sites in one plate over samples, got {name!r} in "
                    f"{len(site['cond_indep_stack'])}"
                )
            total = total + site["log_prob"].expand(site["cond_indep_stack"][0].size)
    return total


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
