"""Energies of a molecule by OpenMM's Reference platform, for tests."""

from __future__ import annotations

import numpy as np
import openmm


def energies(molecule, positions):
    """Energies (n,) in kJ/mol on the Reference platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), platform)
    values = []
    for x in np.asarray(positions, dtype=np.float64):
        context.setPositions(x)
        values.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(values)
