r"""Coordinates of groups of three interchangeable hydrogens that do not depend on their labels.

The hydrogens k = 0, 1, 2 of a rotor stand near the azimuths
:math:`\alpha_k = \bar\tau + 2\pi k/3`. Relabelling them in a circle adds 120 degrees to
:math:`\bar\tau`, so a quantity :math:`a_k` that each of them has is described by

.. math:: a_k = \frac{m}{\sqrt 3} + \sqrt{\tfrac{2}{3}}\,(c \cos\alpha_k + s \sin\alpha_k),

an orthogonal map, whose mean m and modes c and s are the same for each of the three labellings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["collect", "collect_gaps", "spread", "spread_gaps"]

GAP_SCALE = 0.06  # of the logarithm of a gap between neighbours: a gap of 120 degrees moves by 7


def spread(mean: Tensor, cosine: Tensor, sine: Tensor, angle: Tensor) -> Tensor:
    """Return the quantity of the three hydrogens, (3, ...), from its mean and modes.

    Args:
        mean, cosine, sine: m, c and s.
        angle: the mean torsion, of the same shape.

    Example:
        >>> parts = torch.tensor([0.3]), torch.tensor([0.1]), torch.tensor([-0.2])
        >>> back = collect(spread(*parts, torch.tensor([1.0])), torch.tensor([1.0]))
        >>> [round(part.item(), 6) for part in back]
        [0.3, 0.1, -0.2]
    """
    c, s = angle.cos(), angle.sin()
    p, q = c * cosine + s * sine, c * sine - s * cosine
    level, half = mean / math.sqrt(3) - p / math.sqrt(6), q / math.sqrt(2)
    return torch.stack((level + math.sqrt(1.5) * p, level + half, level - half))


def collect(values: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invert :func:`spread`: return m, c and s of the quantity (3, ...) at the mean torsion."""
    first, second, third = values
    c, s = angle.cos(), angle.sin()
    p = (2 * first - second - third) / math.sqrt(6)
    q = (second - third) / math.sqrt(2)
    return (first + second + third) / math.sqrt(3), c * p - s * q, s * p + c * q


def spread_gaps(cosine: Tensor, sine: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gaps from each hydrogen to the next, (3, n, batch), and log|det|, (batch).

    The gaps are 2 pi times the softmax of the modes: positive, of sum 2 pi, so that they are all
    arrangements of one handedness. The determinant is that of the first and the last gap.
    """
    log_share = GAP_SCALE * spread(torch.zeros_like(cosine), cosine, sine, angle)
    log_share = log_share.log_softmax(0)
    constant = 0.5 * math.log(3) + 2 * math.log(2 * math.pi * GAP_SCALE)
    return 2 * math.pi * log_share.exp(), log_share.sum((0, 1)) + constant * len(cosine)


def collect_gaps(gaps: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Invert :func:`spread_gaps`: return the modes of the gaps."""
    _, cosine, sine = collect(gaps.log() / GAP_SCALE, angle)
    return cosine, sine
