"""Cartesian positions without rigid motion as reduced coordinates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrocg.bijections import Coordinates
from pyrocg.symmetries import check_rigid_motion
from pyrocg.zmatrix import choose_frame, handed_neighbour

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = ["CartesianCoordinates"]


class CartesianCoordinates(Coordinates):
    r"""Cartesian positions without the six rigid degrees of freedom, as in the paper.

    Atom 0 of the frame is at the origin, 1 on the z axis at :math:`z_1 > 0`, 2 in the xz plane at
    :math:`x_2 > 0`. The volume element of all positions, divided by that of translations and
    rotations (:math:`8 \pi^2 V`, dropped), is

    .. math:: |\det \partial x/\partial u| = z_1^2 \, x_2 \prod_i \frac{dv_i}{du_i},

    with :math:`x_2 = r_{02} \sin(\angle 102)`. Free positions are
    :math:`v = v_\mathrm{ref} + s u`, positive ones
    :math:`v = v_\mathrm{ref} \exp(s u / v_\mathrm{ref})`, which has the same slope s at u = 0.
    All are real coordinates.

    The frame's plane is fixed, so the mirror image of a configuration is the one with every y
    negated. Where the middle atom is bonded to both others and has four neighbours, the y of its
    heaviest remaining neighbour keeps the sign of the reference, by the same exponential map:
    the mirror image, and the other enantiomer of that centre, are left out exactly. The
    handedness of other centres is not constrained; :class:`InternalCoordinates` keeps it for all.

    Args:
        molecule: at least three atoms.
        frame: three atoms, not in line; default N, CA, C of the central residue of a peptide,
            otherwise the bonded triple nearest to the centre.
        scale: s, in nm.

    Raises:
        ValueError: the frame does not consist of three atoms that span a plane, or the energy
            changes when the whole molecule moves.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> coordinates = CartesianCoordinates(alanine_dipeptide())
        >>> coordinates.frame, coordinates.names[:3], coordinates.n_coordinates
        ((6, 8, 14), ('z_8', 'x_14', 'z_14'), 60)
    """

    columns: Tensor
    reference: Tensor
    positive: Tensor

    def __init__(
        self, molecule: Molecule, frame: tuple[int, int, int] | None = None, scale: float = 0.05
    ) -> None:
        check_rigid_motion(molecule)
        n_atoms = len(molecule.symbols)
        self.frame = choose_frame(molecule) if frame is None else _checked_frame(frame, n_atoms)
        if not scale > 0:
            raise ValueError(f"expected scale > 0 nm, got {scale}")
        _, one, two = self.frame
        rest = [3 * i + k for i in range(n_atoms) if i not in self.frame for k in range(3)]
        columns = [3 * one + 2, 3 * two, 3 * two + 2, *rest]
        super().__init__((n_atoms, 3), [f"{'xyz'[c % 3]}_{c // 3}" for c in columns])
        self.scale = float(scale)
        positions = torch.tensor(molecule.positions, dtype=torch.float64)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        reference = self._aligned(positions).flatten()[self.columns]
        if not bool(reference[:2].min() > 1e-3):
            raise ValueError(
                f"expected three frame atoms that are not in line, got {self.frame}; "
                "choose others with frame=(i, j, k)"
            )
        handed = handed_neighbour(molecule, self.frame)
        half_lines = [3 * one + 2, 3 * two] + ([] if handed is None else [3 * handed + 1])
        positive = torch.isin(self.columns, torch.tensor(half_lines))
        self.register_buffer("reference", reference)
        self.register_buffer("positive", positive, persistent=False)

    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        reference = self.reference.to(u.dtype)
        step = self.scale * u
        exponent = torch.where(self.positive, step / reference, 0.0)
        values = torch.where(self.positive, reference * exponent.exp(), reference + step)
        x = u.new_zeros(*u.shape[:-1], self.event_shape.numel())
        x = x.index_copy(-1, self.columns, values).unflatten(-1, self.event_shape)
        volume = 2 * values[..., 0].log() + values[..., 1].log() + exponent.sum(-1)
        return x, volume + self.n_coordinates * math.log(self.scale)

    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        reference = self.reference.to(x.dtype)
        values = self._aligned(x).flatten(-2)[..., self.columns]
        ratio = torch.where(self.positive, values / reference, 1.0)
        if not bool(values.isfinite().all()):
            raise ValueError("expected finite positions and frame atoms that are not in line")
        if not bool((ratio > 0).all()):
            raise ValueError(
                "expected the handedness of the reference structure at atom "
                f"{self.frame[1]}, got its mirror image in "
                f"{int((ratio <= 0).any(-1).sum())} configurations"
            )
        u = torch.where(self.positive, reference * ratio.log(), values - reference) / self.scale
        return u, self._forward(u)[1]

    def _aligned(self, x: Tensor) -> Tensor:
        """Return x moved and turned into the frame."""
        x = x - x[..., self.frame[0] : self.frame[0] + 1, :]
        z, to_two = x[..., self.frame[1], :], x[..., self.frame[2], :]
        z = z / z.norm(dim=-1, keepdim=True)
        y = torch.linalg.cross(z, to_two)
        y = y / y.norm(dim=-1, keepdim=True)
        return x @ torch.stack((torch.linalg.cross(y, z), y, z), -1)


def _checked_frame(frame: tuple[int, int, int], n_atoms: int) -> tuple[int, int, int]:
    if len(set(frame)) != 3 or len(frame) != 3 or not all(0 <= i < n_atoms for i in frame):
        raise ValueError(f"expected three different atoms from 0 to {n_atoms - 1}, got {frame}")
    return frame
