"""Reduced coordinates u, free of rigid motion, and their exact map to positions.

:class:`Coordinates` is what they share, the others are the kinds there are.
"""

from __future__ import annotations

from pyrocg.bijections import Coordinates, IdentityCoordinates
from pyrocg.cartesian import CartesianCoordinates
from pyrocg.internal import InternalCoordinates

__all__ = ["CartesianCoordinates", "Coordinates", "IdentityCoordinates", "InternalCoordinates"]
