"""Units: nm, kJ/mol, K and radians inside; OpenMM quantities are converted only here."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["GAS_CONSTANT", "in_units", "thermal_energy"]

GAS_CONSTANT = 8.31446261815324e-3
"""Molar gas constant R in kJ/(mol K) (CODATA 2018, exact)."""


def thermal_energy(temperature: float) -> float:
    """Return k_B T in kJ/mol of a temperature in K.

    Raises:
        ValueError: the temperature is not a positive, finite number.

    Example:
        >>> round(thermal_energy(300.0), 6)
        2.494339
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"expected a temperature in K above 0, got {temperature}")
    return GAS_CONSTANT * temperature


def in_units(quantity: Any, unit: Any) -> Any:
    """Return a number or array in ``unit``, from an OpenMM quantity or from a bare value.

    Bare values are taken to be in ``unit`` already.
    """
    return quantity.value_in_unit(unit) if hasattr(quantity, "value_in_unit") else quantity
