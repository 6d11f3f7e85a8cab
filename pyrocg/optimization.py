"""The recipe of a training: its optimiser, and the plan of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

__all__ = ["default_optimizer", "warmup_cosine"]


_LONG = 200  # matrices of a stack


def default_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Build the optimiser that :func:`pyrocg.fit` takes by default, SOAP (Vyas et al. 2024).

    Of stacks of more than 200 matrices, one for each component, only dimensions up to 200 are
    preconditioned: so many components are not alike, and it would cost more than it gains.

    Args:
        parameters: what it trains.
        learning_rate: its learning rate.
    """
    from pytorch_optimizer import SOAP  # imports slowly

    every = list(parameters)
    stacks = [p for p in every if p.dim() > 2 and len(p) > _LONG]
    others = [p for p in every if p.dim() <= 2 or len(p) <= _LONG]
    groups = [(others, 512), (stacks, _LONG)]
    return SOAP(
        [{"params": ps, "max_precondition_dim": limit} for ps, limit in groups if ps],
        lr=learning_rate,
        betas=(0.9, 0.99),
        shampoo_beta=0.95,
        weight_decay=0.0,
    )


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    r"""Return the factor of the learning rate at a step: a linear rise, then along a cosine to 0.

    .. math:: \min\Big(1, \frac{s + 1}{w S}\Big) \cdot
              \tfrac12 \Big(1 + \cos\frac{\pi s}{S}\Big)

    Args:
        steps: S, at which it is 0.
        warmup: w, the fraction of them in which it rises.

    Example:
        >>> factor = warmup_cosine(100, warmup=0.1)
        >>> round(factor(0), 2), round(factor(50), 2), round(factor(100), 2)
        (0.1, 0.5, 0.0)
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1.0, warmup * steps))
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))

    return factor
