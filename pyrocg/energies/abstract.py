"""The contract of every potential energy: positions in, energies in kJ/mol out, differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = ["CappedEnergy", "Energy", "names_of_atoms"]


class Energy(nn.Module, ABC):
    r"""A potential energy :math:`U(x)`, batched and differentiable once.

    A subclass implements :meth:`_energy` for a flat batch; the base class checks shapes and
    dtypes, folds the batch dimensions, counts the evaluated configurations in :attr:`calls`
    and the non-finite energies among them in :attr:`nonfinite`, see :meth:`report`.

    Args:
        event_shape: shape of one configuration, ``(n_atoms, 3)`` for a molecule (nm) or
            ``(dim,)`` for a toy potential.
        atom_names: what :meth:`report` calls the atoms of a molecule.

    Attributes:
        engine_reason: why this class evaluates the molecule, where that was chosen for the user.
    """

    engine_reason: str = ""

    def __init__(self, event_shape: Sequence[int], atom_names: Sequence[str] = ()) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.atom_names = list(atom_names)
        self.calls = 0
        self._nonfinite: Tensor | int = 0
        self._offender: Tensor | None = None

    @abstractmethod
    def _energy(self, x: Tensor) -> Tensor:
        """Energies (batch,) in kJ/mol of configurations (batch, *event_shape); batch >= 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(...)`` in kJ/mol of configurations ``(..., *event_shape)``.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: the trailing dimensions are not :attr:`event_shape`, or the batch is empty.
        """
        n = len(self.event_shape)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"expected a floating-point tensor of positions, got {got}; "
                "convert it, for instance with torch.as_tensor(x, dtype=torch.float64)"
            )
        if x.shape[x.dim() - n :] != self.event_shape or x.dim() < n:
            raise ValueError(
                f"expected positions of shape (..., {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}; check the number of atoms and the order of dimensions"
            )
        batch_shape = x.shape[: x.dim() - n]
        if batch_shape.numel() == 0:
            raise ValueError(
                f"expected at least one configuration, got a batch of shape {tuple(batch_shape)}"
            )
        batch = x.reshape(-1, *self.event_shape)
        energy = self._energy(batch)
        self.calls += len(batch)
        self._note_nonfinite(~torch.isfinite(energy.detach()), batch.detach())
        return energy.reshape(batch_shape)

    def _note_nonfinite(self, broken: Tensor, x: Tensor) -> None:
        """Count the broken configurations of a batch and keep the last of them.

        Without a branch, for which the host would wait for a GPU.
        """
        count = broken.sum()
        if isinstance(self._nonfinite, Tensor):
            count = count + self._nonfinite.to(count.device)
        self._nonfinite = count
        last = (broken * torch.arange(1, len(x) + 1, device=x.device)).argmax()
        found = x.index_select(0, last.reshape(1))[0]
        before = found if self._offender is None else self._offender.to(x)
        self._offender = torch.where(broken.any(), found, before)

    @property
    def nonfinite(self) -> int:
        """How many of the evaluated energies were infinite or NaN."""
        return int(self._nonfinite)

    @property
    def counters(self) -> tuple[int, Tensor | int, Tensor | None]:
        """What is counted; put back, evaluations since then have not been."""
        return self.calls, self._nonfinite, self._offender

    @counters.setter
    def counters(self, before: tuple[int, Tensor | int, Tensor | None]) -> None:
        self.calls, self._nonfinite, self._offender = before

    def report(self) -> str:
        """Return one line on the non-finite energies so far, with the closest atoms of the latest.

        Empty if every energy was finite.
        """
        if self.nonfinite == 0:
            return ""
        count = f"{self.nonfinite:,} of {self.calls:,} energies were not finite"
        if self._offender is None or self.event_shape[:-1].numel() < 2:  # no pair of atoms
            return count
        return f"{count}; in the latest, {self._closest(self._offender.double().cpu())}"

    def _closest(self, x: Tensor) -> str:
        """What is wrong with a configuration ``(n_atoms, 3)``."""
        broken = (~torch.isfinite(x).all(-1)).nonzero()
        if len(broken):
            return f"the position of {self._atom(int(broken[0]))} is not finite"
        distance = torch.linalg.vector_norm(x[:, None] - x, dim=-1).fill_diagonal_(torch.inf)
        i, j = divmod(int(distance.argmin()), len(x))
        return (
            f"the closest atoms are {self._atom(i)} and {self._atom(j)}, "
            f"{float(distance[i, j]):.4g} nm apart"
        )

    def _atom(self, i: int) -> str:
        return f"{self.atom_names[i]} (index {i})" if self.atom_names else f"atom {i}"

    @property
    def exact(self) -> Energy:
        """The physical energy, free of any cap: what weights and predictions are computed with."""
        return self


class CappedEnergy(Energy):
    r"""An energy whose steep walls are tamed while training, energy and force consistently.

    .. math:: U_c(x) = U(x) \text{ if } U(x) \le c, \quad
              c + s \log\!\left(1 + \frac{U(x) - c}{s}\right) \text{ otherwise,}

    so the force is scaled by :math:`1/(1 + (U - c)/s)` above the cap. ``ceiling``,
    :math:`c + 20 s`, is never exceeded: energies beyond it and non-finite ones become it, with
    zero force. Weights and predictions use :attr:`exact`, the energy inside.

    Args:
        energy: the energy to cap.
        cap: :math:`c` in kJ/mol.
        softness: :math:`s` in kJ/mol, the scale on which the energy above the cap is compressed.

    Example:
        >>> import torch
        >>> from pyrocg.energies.toy import Harmonic
        >>> capped = CappedEnergy(Harmonic(dim=1), cap=10.0, softness=1.0)
        >>> [round(v, 4) for v in capped(torch.tensor([[1.0], [10.0]])).tolist()]
        [0.5, 13.7136]
    """

    def __init__(self, energy: Energy, cap: float, softness: float = 10.0) -> None:
        if not softness > 0:
            raise ValueError(f"expected softness > 0 kJ/mol, got {softness}")
        super().__init__(energy.event_shape)
        self.energy = energy
        self.cap = float(cap)
        self.softness = float(softness)
        self.ceiling = self.cap + 20.0 * self.softness

    def _energy(self, x: Tensor) -> Tensor:
        x = x.view_as(x)
        energy = self.energy(x)
        finite = torch.isfinite(energy.detach())
        if x.requires_grad:  # an infinite force times a zero weight would be NaN
            mask = finite.reshape(-1, *(1 for _ in self.event_shape))
            x.register_hook(lambda f: f if f is None else torch.where(mask, f, 0.0))
        excess = (energy - self.cap).clamp(min=0.0) / self.softness
        capped = torch.where(excess > 0, self.cap + self.softness * torch.log1p(excess), energy)
        return torch.where(finite, capped.clamp(max=self.ceiling), self.ceiling)

    def report(self) -> str:
        """Return that of the energy inside; the capped one is always finite."""
        return self.energy.report()

    @property
    def exact(self) -> Energy:
        return self.energy.exact


def names_of_atoms(molecule: Molecule) -> list[str]:
    """Return residue and name of each atom, such as ``ALA2:CA``."""
    return [f"{a.residue.name}{a.residue.id}:{a.name}" for a in molecule.topology.atoms()]
