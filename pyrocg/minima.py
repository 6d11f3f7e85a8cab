"""Minima of a potential over reduced coordinates: descent, Newton steps, Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["FLATTEST", "Potential", "descend", "evaluate", "hessian_at", "is_minimum", "newton"]

Potential: TypeAlias = Callable[[Tensor], Tensor]
"""From u (n, n_coordinates) to nats (n,), differentiable."""

FLATTEST = 0.05  # smallest curvature, in nats per squared unit of u, that a component may have
_HALVINGS = [2.0**-k for k in range(6)]  # of a Newton step
_ROUNDING = 1e-12
_CONVERGED = 0.01  # nats that the next Newton step promises below what is taken for a minimum


@torch.no_grad()
def evaluate(potential: Potential, u: Tensor) -> Tensor:
    """Return the potential of every row of u, shape ``(n,)``, without gradients."""
    return potential(u)


def _gradient(potential: Potential, u: Tensor) -> Tensor:
    return _with_gradient(potential, u)[1]


def _with_gradient(potential: Potential, u: Tensor) -> tuple[Tensor, Tensor]:
    u = u.detach().requires_grad_()
    value = potential(u)
    return value.detach(), torch.autograd.grad(value.sum(), u)[0]


def descend(
    potential: Potential,
    u: Tensor,
    steps: int,
    bar: Callable[[Iterable[int]], Iterable[int]] = iter,
    fixed: Tensor | None = None,
) -> Tensor:
    """Minimise from every start by Adam, whose steps do not depend on the force's size.

    They can leave a minimum for a wall behind it, so the result is the lowest point that each start
    came by, the start included.

    Args:
        potential: in nats; where its gradient is not finite, a start stays where it is.
        u: the starts, shape ``(n, n_coordinates)``.
        steps: how many.
        bar: put around the steps, to show their progress.
        fixed: indices of coordinates that keep their values.

    Example:
        >>> starts = torch.tensor([[3.0], [-2.0]])
        >>> bool((descend(lambda u: u.square().sum(-1), starts, 200).abs() < 0.01).all())
        True
    """
    u = u.clone().requires_grad_()
    adam = torch.optim.Adam([u], lr=0.1, betas=(0.8, 0.95))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=1e-3)
    best, lowest = u.detach().clone(), torch.full_like(u[:, 0].detach(), torch.inf)
    for _ in bar(range(steps)):
        value, gradient = _with_gradient(potential, u)
        best, lowest = _lower(u, value, best, lowest)
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if fixed is not None:
            gradient[:, fixed] = 0.0
        u.grad = gradient
        adam.step()
        rates.step()
    return _lower(u, evaluate(potential, u.detach()), best, lowest)[0]


def _lower(u: Tensor, value: Tensor, best: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """The lower one of two points in each row, and its value."""
    better = value < lowest
    return torch.where(better[:, None], u.detach(), best), torch.where(better, value, lowest)


def newton(potential: Potential, u: Tensor, max_steps: int = 12) -> tuple[Tensor, Tensor]:
    """Newton steps down to a minimum, none longer than 0.5 along any axis of the Hessian.

    Axes of negative curvature are followed downhill, by its absolute value. A step that leads
    uphill is halved, up to five times.

    Args:
        potential: in nats.
        u: one start, shape ``(n_coordinates,)``.
        max_steps: it ends sooner where a step moves no coordinate by 1e-4, or only uphill.

    Returns:
        The last point, and the Hessian there.

    Example:
        >>> u, hessian = newton(lambda u: 2 * u.square().sum(-1), torch.tensor([0.4]).double())
        >>> abs(u.item()) < 1e-6, round(hessian.item(), 4)
        (True, 4.0)
    """
    for left in reversed(range(max_steps + 1)):
        hessian = hessian_at(potential, u)
        if not bool(hessian.isfinite().all()):
            break
        values, vectors = torch.linalg.eigh(hessian)
        value, gradient = _with_gradient(potential, u.unsqueeze(0))
        slopes = vectors.mT @ gradient[0]
        step = vectors @ (slopes / values.abs().clamp(min=FLATTEST)).clamp(-0.5, 0.5)
        if left == 0 or float(step.abs().max()) < 1e-4:
            break
        ends = u - step * torch.tensor(_HALVINGS).to(u)[:, None]
        downhill = evaluate(potential, ends) <= value + _ROUNDING * value.abs()
        if not bool(downhill.any()):
            break
        u = ends[int(downhill.nonzero()[0])]
    return u, hessian


def hessian_at(potential: Potential, u: Tensor) -> Tensor:
    r"""Return the Hessian at u, shape ``(n_coordinates,)``, in one batch of potential calls.

    .. math:: H_j = \frac{\nabla V(u + h e_j) - \nabla V(u - h e_j)}{2 h}, \quad h = 10^{-4}

    for every column j, made symmetric.

    Args:
        potential: in nats; float64, or the differences are noise.
        u: a point.

    Example:
        >>> hessian_at(lambda u: u[..., 0] * u[..., 1], torch.zeros(2).double()).round().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    step = 1e-4 * torch.eye(len(u), dtype=u.dtype, device=u.device)
    forward, backward = _gradient(potential, torch.cat([u + step, u - step])).chunk(2)
    hessian = (forward - backward) / 2e-4
    return 0.5 * (hessian + hessian.mT)


def is_minimum(potential: Potential, u: Tensor, hessian: Tensor) -> bool:
    r"""Whether the Hessian is positive definite and the gradient g small, by what is left to gain.

    That is :math:`\tfrac12 g^\top H^{-1} g`, in nats whatever the units of u; below 0.01 is small.

    Args:
        potential: in nats.
        u: a point, shape ``(n_coordinates,)``.
        hessian: H there.
    """
    if not bool(hessian.isfinite().all()) or not float(torch.linalg.eigvalsh(hessian)[0]) > 0:
        return False
    gradient = _gradient(potential, u.unsqueeze(0))[0]
    return float(0.5 * gradient @ torch.linalg.solve(hessian, gradient)) < _CONVERGED
