"""The density that a model gives to configurations from elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import Coordinates
from pyrocg.traces import drawn_values, log_generator, site_log_probs

__all__ = ["score"]


@torch.no_grad()
def score(model: CoarseGrainedModel, x: Tensor) -> Tensor:
    r"""Log importance weights of given configurations, with one draw :math:`z \sim r(z|u)` each.

    .. math:: \log w = -t\beta U + \log|\partial T/\partial u| + \log r(z|u) - \log p(z)
              - \log q(u|z)

    Averaged over exact samples of the target, :math:`E[1/w] = 1/Z`. The uncapped energy is used,
    at the model's t.

    Args:
        model: the model.
        x: configurations, shape ``(n, *event_shape)``.

    Returns:
        Shape ``(n,)``, float64; infinite where the model's density is 0, NaN where a configuration
        has no reduced coordinates.

    Example:
        >>> import torch, pyrocg
        >>> model = pyrocg.CoarseGrainedModel.from_basins(
        ...     pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0),
        ...     pyrocg.IdentityCoordinates(2),
        ...     latent_dim=1,
        ... )
        >>> score(model, torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    u, inside = _inverse(model.coordinates, x)
    log_w = torch.full((len(x),), math.nan, dtype=torch.float64, device=u.device)
    n = int(inside.sum())
    if n == 0:
        return log_w
    u = u[inside].to(model.model.origin.dtype)
    capped = model.model.target
    model.model.target = capped.exact
    try:
        conditioned = poutine.condition(model.model, data={"u": u})
        target = poutine.trace(conditioned).get_trace(n)
    finally:
        model.model.target = capped
    log_target: Any = sum(site_log_probs(target, n).values())
    log_q = log_generator(model.guide, u, drawn_values(target))
    log_w[inside] = (log_target - log_q).double()
    return log_w


def _inverse(coordinates: Coordinates, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reduced coordinates in float64, and which configurations have any."""
    try:
        u, _ = coordinates.inverse(x.double())
        return u, torch.isfinite(u).all(-1)
    except ValueError:  # of the whole batch: look for the configurations that cause it
        if len(x) == 1:
            u = x.new_zeros(1, coordinates.n_coordinates, dtype=torch.float64)
            return u, torch.zeros(1, dtype=torch.bool, device=x.device)
        parts = [_inverse(coordinates, half) for half in x.tensor_split(2)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
