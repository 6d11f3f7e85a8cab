"""Potential energies with one contract: ``energy(positions)`` in kJ/mol, differentiable."""
