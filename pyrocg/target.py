"""The Boltzmann density: the only place that knows kT and the sign of the energy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrocg.energies.abstract import Energy
from pyrocg.units import thermal_energy

__all__ = ["BoltzmannTarget"]


class BoltzmannTarget(nn.Module):
    r"""The unnormalised density :math:`\exp(-t \beta U(x))`.

    Args:
        energy: :math:`U`, in kJ/mol.
        temperature: in K, :math:`\beta = 1/(k_B T)`.
        beta: :math:`\beta` itself, in mol/kJ, in place of a temperature (toy potentials: 1).

    Raises:
        ValueError: not exactly one of ``temperature`` and ``beta`` is given, or it is not positive.

    Example:
        >>> import torch
        >>> from pyrocg.energies.toy import Harmonic
        >>> target = BoltzmannTarget(Harmonic(dim=2), beta=1.0)
        >>> target.log_prob(torch.tensor([1.0, 2.0])).item()
        -2.5
    """

    def __init__(
        self, energy: Energy, temperature: float | None = None, *, beta: float | None = None
    ) -> None:
        super().__init__()
        if (temperature is None) == (beta is None):
            raise ValueError(
                "expected exactly one of temperature (K) and beta (mol/kJ), "
                f"got temperature={temperature} and beta={beta}"
            )
        if beta is None:
            assert temperature is not None
            beta = 1.0 / thermal_energy(temperature)
        if not (0 < beta < float("inf")):
            raise ValueError(f"expected beta > 0 mol/kJ, got {beta}")
        self.energy = energy
        self.beta = float(beta)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one configuration."""
        return self.energy.event_shape

    def log_prob(self, x: Tensor, temper: Tensor | float = 1.0) -> Tensor:
        """Return -t β U(x), shape ``(...)``, of configurations ``(..., *event_shape)``."""
        return -temper * self.beta * self.energy(x)

    @property
    def exact(self) -> BoltzmannTarget:
        """The same density on the uncapped energy: what weights and predictions use."""
        exact = self.energy.exact
        return self if exact is self.energy else BoltzmannTarget(exact, beta=self.beta)
