"""Distances, angles and torsions of named atoms, and how the energy of one pulls at them.

The gradient of an energy comes as *arms*: vectors that add to some of the atoms and subtract from
others, as the ``pattern`` of triples (member, arm, sign) says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrocg.energies.terms import Vector, cross, dot, scale, subtract

__all__ = ["Bend", "Stretch", "Twist"]

Pattern = tuple[tuple[int, int, int], ...]

_SMALLEST_NORMAL = 1e-6
"""nm^2; OpenMM bounds the normal of an angle from below by this, so that straight angles pull
finitely."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """The distance of two atoms."""

    offset: Vector
    distance: Tensor

    pattern: ClassVar[Pattern] = ((0, 0, 1), (1, 0, -1))

    @classmethod
    def of(cls, members: Sequence[Vector]) -> Stretch:
        first, second = members
        offset = subtract(first, second)
        return cls(offset, torch.sqrt(dot(offset, offset)))

    @property
    def value(self) -> Tensor:
        """The distance, nm."""
        return self.distance

    def arms(self, slope: Tensor) -> tuple[Vector, ...]:
        """Arms of a derivative by the distance; none for atoms on top of each other."""
        pull = torch.where(self.distance == 0, 0.0, slope / self.distance)
        return (scale(pull, self.offset),)


@dataclass(frozen=True, eq=False)
class Bend:
    """The angle at the second of three atoms."""

    first: Vector
    last: Vector
    normal: Vector
    sine: Tensor
    """Of the angle, times both lengths, nm^2."""
    angle: Tensor

    pattern: ClassVar[Pattern] = ((0, 0, 1), (1, 0, -1), (1, 1, -1), (2, 1, 1))

    @classmethod
    def of(cls, members: Sequence[Vector]) -> Bend:
        a, vertex, c = members
        u, w = subtract(a, vertex), subtract(c, vertex)
        normal = cross(u, w)
        sine = torch.sqrt(dot(normal, normal))
        # the arc tangent keeps its precision at 0 and pi, where the arc cosine has none
        angle = torch.atan2(sine, dot(u, w))
        meeting = dot(u, u) * dot(w, w) == 0  # no angle where two of the atoms are one
        return cls(u, w, normal, sine, torch.where(meeting, torch.nan, angle))

    @property
    def value(self) -> Tensor:
        """The angle, in [0, pi]; NaN where an arm has no length."""
        return self.angle

    def arms(self, torque: Tensor) -> tuple[Vector, ...]:
        """Arms of a derivative by the angle."""
        u, w = self.first, self.last
        per_sine = torque / self.sine.clamp(min=_SMALLEST_NORMAL)
        arm_a = scale(per_sine / dot(u, u), cross(u, self.normal))
        arm_c = scale(per_sine / dot(w, w), cross(self.normal, w))
        return (arm_a, arm_c)


@dataclass(frozen=True, eq=False)
class Twist:
    r"""The torsion of four atoms, through its cosine and sine: no inverse function, no branch.

    With :math:`f = x_1 - x_2, g = x_2 - x_3, h = x_4 - x_3` the normals are :math:`a = f \times g`
    and :math:`b = h \times g` (Blondel and Karplus, doi:10.1002/(SICI)1096-987X(19960715)17:9).
    """

    lean: tuple[Tensor, Tensor]
    """How far f and h reach along g, in units of its length, with the opposite sign."""
    normals: tuple[Vector, Vector]
    squared: tuple[Tensor, Tensor]
    """Of the normals."""
    axis: Tensor
    """The length of g."""
    cosine: Tensor
    sine: Tensor

    pattern: ClassVar[Pattern] = (
        (0, 0, 1),
        (1, 0, -1),
        (1, 2, 1),
        (2, 2, -1),
        (2, 1, -1),
        (3, 1, 1),
    )

    @classmethod
    def of(cls, members: Sequence[Vector]) -> Twist:
        first, second, third, fourth = members
        f, g, h = subtract(first, second), subtract(second, third), subtract(fourth, third)
        a, b = cross(f, g), cross(h, g)
        aa, bb, gg = dot(a, a), dot(b, b), dot(g, g)
        axis = torch.sqrt(gg)
        scaled = torch.rsqrt(aa) * torch.rsqrt(bb)
        cosine, sine = dot(a, b) * scaled, axis * dot(a, h) * scaled
        return cls((-dot(f, g) / gg, -dot(h, g) / gg), (a, b), (aa, bb), axis, cosine, sine)

    @property
    def value(self) -> Tensor:
        """The torsion, in (-pi, pi]."""
        return torch.atan2(self.sine, self.cosine)

    def arms(self, torque: Tensor) -> tuple[Vector, ...]:
        """Arms of a derivative by the torsion."""
        (a, b), (aa, bb), (lean_f, lean_h) = self.normals, self.squared, self.lean
        pull = torque * self.axis
        arm_first = scale(-pull / aa, a)
        arm_fourth = scale(pull / bb, b)
        shift = tuple(lean_f * p + lean_h * q for p, q in zip(arm_first, arm_fourth, strict=True))
        return (arm_first, arm_fourth, (shift[0], shift[1], shift[2]))
