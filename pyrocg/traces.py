"""Traces of model and guide: what was drawn, and the density of each sample at every site."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.runtime import am_i_wrapped, effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

__all__ = [
    "check_sites",
    "drawn_values",
    "log_generator",
    "register_parameters",
    "shaped_like",
    "site_log_probs",
]


def drawn_values(trace: poutine.Trace) -> dict[str, Any]:
    """Values of the sites that were drawn: neither observed nor deterministic."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def log_generator(guide: nn.Module, u: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """log p(z) q(u|z), shape (n,); minus infinity where z is outside of the prior's support."""
    n = len(u)

    def traced(values: dict[str, Tensor]) -> poutine.Trace:
        return poutine.trace(poutine.condition(guide, data={**values, "u": u})).get_trace(n)

    trace = traced(latents)
    inside = _inside(trace, latents, n)
    if not bool(inside.all()):  # validation refuses such values: any others in their place
        others = drawn_values(poutine.trace(guide).get_trace(n))
        trace = traced(
            {k: torch.where(shaped_like(inside, v), v, others[k]) for k, v in latents.items()}
        )
    scored: Any = sum(site_log_probs(trace, n).values())
    return torch.where(inside, scored, -torch.inf)


def _inside(trace: poutine.Trace, latents: dict[str, Tensor], n: int) -> Tensor:
    """Which samples have all latents in the support of the prior, shape (n,)."""
    found = torch.ones(n, dtype=torch.bool, device=next(iter(latents.values())).device)
    for name, value in latents.items():
        prior: Any = trace.nodes[name]["fn"]
        found = found & prior.support.check(value)
    return found


def shaped_like(mask: Tensor, value: Tensor) -> Tensor:
    """The mask, shape ``(n,)``, with the trailing dimensions of a value ``(n, ...)``, of size 1."""
    return mask.reshape(-1, *(1 for _ in value.shape[1:]))


def site_log_probs(trace: poutine.Trace, n: int) -> dict[str, Tensor]:
    """Log density of every sample at every site, shape (n,) each."""
    with warnings.catch_warnings():  # of -inf and NaN, which the caller counts
        warnings.filterwarnings("ignore", "Encountered .*(inf|NaN)", UserWarning)
        trace.compute_log_prob()
    return {
        name: site["log_prob"].expand(n)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def check_sites(guide: poutine.Trace, model: poutine.Trace) -> None:
    """Refuse an encoder with other latents than the prior: the weights would be wrong."""
    prior, encoder = set(drawn_values(guide)), set(drawn_values(model))
    if prior != encoder:
        raise ValueError(
            f"expected an encoder with the sites of the prior, {sorted(prior)}, got "
            f"{sorted(encoder)}; give the encoder program a site for each of the prior's"
        )


def register_parameters(name: str, module: nn.Module) -> None:
    """Show a module's parameters to Pyro's handlers as param sites, store-free.

    This is what a ``PyroModule`` does when ``module_local_params`` is set: SVI finds the
    parameters, while two models never share any through the global store. Pyro modules inside
    register themselves.
    """
    if not am_i_wrapped():
        return
    own = {
        id(p) for m in module.modules() if isinstance(m, pyro.nn.PyroModule) for p in m.parameters()
    }
    for key, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            alias = parameter.view_as(parameter)  # bare, so that the parameter can be pickled
            alias.unconstrained = lambda p=parameter: p  # type: ignore[attr-defined]
            site = f"{name}$$${key}"
            effectful(type="param")(lambda *_, value=alias, **__: value)(
                site, alias, constraint=dist.constraints.real, event_dim=None, name=site
            )
