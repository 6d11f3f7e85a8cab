"""Bounded quantities on the real line: bond lengths, bond angles and sibling phases."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

__all__ = ["Intervals", "around_reference"]

# how far a coordinate moves at room temperature: u is about one unit wide
BOND_SCALE, ANGLE_SCALE, PHASE_SCALE = 0.003, 0.06, 0.1  # nm, rad, rad


class Intervals(nn.Module):
    r"""Maps u to open intervals, :math:`v = a + (b - a)\, \sigma(k u + c)`.

    :math:`u = 0` is the reference value, where :math:`dv/du` is the given scale.

    Args:
        lower: a, shape ``(n,)``.
        upper: b, shape ``(n,)``.
        reference: between them, shape ``(n,)``.
        scale: shape ``(n,)``.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> v, log_slope, _ = Intervals(zero, one, 0.25 * one, 0.1 * one)(torch.zeros(1, 1))
        >>> round(v.item(), 4), round(log_slope.exp().item(), 4)
        (0.25, 0.1)
    """

    bounds: Tensor

    def __init__(self, lower: Tensor, upper: Tensor, reference: Tensor, scale: Tensor) -> None:
        super().__init__()
        fraction = (reference - lower) / (upper - lower)
        slope = scale / ((upper - lower) * fraction * (1 - fraction))
        rows = (lower, upper - lower, fraction.logit(), slope)
        self.register_buffer("bounds", torch.stack(rows).unsqueeze(-1))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return v, log dv/du and the argument of the sigmoid, all (n, batch)."""
        lower, width, shift, slope = self.bounds.to(u.dtype)
        y = slope * u + shift
        return lower + width * y.sigmoid(), (width * slope).log() + 2 * logsigmoid(y) - y, y

    def inverse(self, v: Tensor) -> Tensor:
        """Return u of values inside their intervals, (n, batch)."""
        lower, width, shift, slope = self.bounds.to(v.dtype)
        return (((v - lower) / width).logit() - shift) / slope

    def outside(self, v: Tensor) -> Tensor:
        """Which values, (n, batch), are not inside their interval."""
        lower, width, _, _ = self.bounds.to(v.dtype)
        return ~((v > lower) & (v < lower + width))


def around_reference(r: Tensor, theta: Tensor, phase: Tensor, signed: Tensor) -> Intervals:
    """Return the intervals of bonds, angles and phases around their reference values.

    Args:
        r: bonds in nm, within 0.5 to 1.5 of these.
        theta: angles in rad, within (0, pi).
        phase: phases in rad, of any value, or of one sign.
        signed: which phases keep their sign, if it is clear: 20 degrees from 0 and 180.
    """
    # a sign is kept only where the reference has one clearly
    signed = signed & (phase.sin().abs() > math.sin(math.radians(20.0)))
    low = torch.where(signed, -math.pi * (phase < 0).to(phase), phase - math.pi)
    high = torch.where(signed, low + math.pi, phase + math.pi)
    zero = torch.zeros_like(theta)
    return Intervals(
        torch.cat((0.5 * r, zero, low)),
        torch.cat((1.5 * r, zero + math.pi, high)),
        torch.cat((r, theta, phase)),
        torch.cat(
            [
                torch.full_like(part, scale)
                for part, scale in ((r, BOND_SCALE), (theta, ANGLE_SCALE), (phase, PHASE_SCALE))
            ]
        ),
    )
