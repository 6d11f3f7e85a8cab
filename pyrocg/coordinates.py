"""Reduced coordinates u, free of rigid motion, and their exact map to positions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyrocg.distributions import wrap
from pyrocg.intervals import around_reference
from pyrocg.placement import Placement, measure
from pyrocg.rotors import collect, collect_gaps, spread, spread_gaps
from pyrocg.zmatrix import (
    MINIMUM_SINE,
    Row,
    ZMatrix,
    build_zmatrix,
    choose_frame,
    find_backbone,
    handed_neighbour,
    keeps_sign,
)

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = ["CartesianCoordinates", "Coordinates", "IdentityCoordinates", "InternalCoordinates"]


class Coordinates(nn.Module, ABC):
    r"""A bijection :math:`x = T(u)` between reduced coordinates and configurations.

    Every coordinate is either *real* (:math:`u_i \in \mathbb{R}`, about one unit wide when
    thermal) or *circular* (:math:`u_i` and :math:`u_i + 2\pi` are the same point; any real value
    is accepted, :meth:`inverse` returns :math:`[-\pi, \pi)`). A bounded quantity is mapped to the
    real line, so that every density over u is a proper density over x.

    Args:
        event_shape: shape of one configuration x.
        names: a name for every coordinate.
        circular: which coordinates are circular, shape ``(n_coordinates,)``; default none.

    Attributes:
        origin: the reference configuration in reduced coordinates, shape ``(n_coordinates,)``.
        rotatable: indices of the circular coordinates that tell conformations apart.
    """

    circular: Tensor
    origin: Tensor
    rotatable: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        names: Sequence[str],
        circular: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.names = tuple(names)
        if circular is None:
            circular = torch.zeros(len(self.names), dtype=torch.bool)
        self.register_buffer("circular", circular, persistent=False)
        self.register_buffer("origin", torch.zeros(len(self.names)), persistent=False)
        self.register_buffer("rotatable", circular.nonzero()[:, 0], persistent=False)

    @property
    def n_coordinates(self) -> int:
        """Number of reduced coordinates."""
        return len(self.names)

    @abstractmethod
    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map u (..., n_coordinates) to x (..., *event_shape) and log|det dx/du| (...)."""

    @abstractmethod
    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to u and log|det dx/du| at u."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x`` of shape ``(..., *event_shape)`` and ``log|det dx/du|`` of shape ``(...)``.

        Raises:
            ValueError: the last dimension of ``u`` is not ``n_coordinates``.
        """
        if u.dim() < 1 or u.shape[-1] != self.n_coordinates:
            raise ValueError(
                f"expected reduced coordinates of shape (..., {self.n_coordinates}), "
                f"got {tuple(u.shape)}"
            )
        return self._forward(u)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``u`` of shape ``(..., n_coordinates)`` and ``log|det dx/du|`` at that ``u``.

        Raises:
            ValueError: the trailing dimensions of ``x`` are not ``event_shape``.
        """
        n = len(self.event_shape)
        if x.dim() < n or x.shape[x.dim() - n :] != self.event_shape:
            raise ValueError(
                f"expected positions of shape (..., {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return self._inverse(x)


class IdentityCoordinates(Coordinates):
    r"""The identity, :math:`x = u \in \mathbb{R}^d`, for potentials that have no rigid motion.

    Args:
        dim: the dimension d.

    Example:
        >>> import torch
        >>> x, log_abs_det = IdentityCoordinates(2)(torch.tensor([[1.0, 2.0]]))
        >>> x.tolist(), log_abs_det.tolist()
        ([[1.0, 2.0]], [0.0])
    """

    def __init__(self, dim: int) -> None:
        super().__init__((dim,), [f"x{i + 1}" for i in range(dim)])

    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u, u.new_zeros(u.shape[:-1])

    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[:-1])


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
        ValueError: the frame does not consist of three atoms that span a plane.

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


class InternalCoordinates(Coordinates):
    r"""Bond lengths, angles, torsions and sibling phases of a spanning tree of the bonds.

    .. math:: \log|\det \partial x/\partial u| = \sum_i \log\frac{dv_i}{du_i}
              + 2 \sum_{i \ge 1} \log r_i + \sum_{i \ge 2} \log \sin\theta_i,

    the volume element of all positions, divided by that of translations and rotations
    (:math:`8 \pi^2 V`, dropped). Configurations are written with frame atom 0 at the origin,
    1 on the z axis and 2 in the xz plane at x > 0; :meth:`inverse` takes them in any placement.

    - *Torsions* are circular and u is the angle itself. Only the first atom of a group of siblings
      has one, and it follows the backbone, so phi, psi and omega are coordinates; see
      :meth:`index`.
    - *Phases*, of further siblings, are the angle to the first sibling about the common bond.
      Where the centre has four neighbours (or is a pyramid of P, S, ...) a phase keeps the sign it
      has in the reference: chirality is kept. Elsewhere (planar centres, amine nitrogen, which
      inverts) it covers the whole turn around its reference value.
    - *Bonds* stay within 0.5 to 1.5 of their reference length, *angles* within (0, pi). These and
      the phases are real coordinates: u = 0 is the reference, a unit of u is 0.003 nm, 0.06 rad
      or 0.1 rad there.
    - *Rotors* (methyl, NH3+): relabelling the hydrogens in a circle shifts the mean
      :math:`\bar\tau` of their torsions by 120 degrees and leaves the energy alone. The circular
      coordinate is :math:`u = 3(\bar\tau - \bar\tau_\mathrm{ref})`, and the bonds, angles and
      gaps of the three enter as a mean and two modes that do not depend on the labels either
      (:mod:`pyrocg.rotors`). So u has one third of the configurations, each standing for its three
      labellings: going once round the circle of u relabels the hydrogens of x, and energy and
      volume are smooth there. The map's Jacobian is 1/3, the volume counts 3 equal images: both
      factors cancel in ``log_abs_det``, and
      :math:`\int e^{-\beta U} e^\mathtt{log\_abs\_det} du` is the partition function of the
      whole circle. (Labels of the other handedness are left out, as for every centre.)

    Args:
        molecule: at least three atoms, connected; no three bonded atoms of the tree in line.
        fold_rotors: use one well of each rotor; if not, it has a plain torsion. Needed where a
            force field tells the hydrogens of one group apart.

    Raises:
        ValueError: the molecule or its reference geometry has no such coordinates.

    Example:
        >>> from pyrocg.molecules import alanine_dipeptide
        >>> coordinates = InternalCoordinates(alanine_dipeptide())
        >>> coordinates.n_coordinates, int(coordinates.circular.sum())
        (60, 7)
        >>> coordinates.names[coordinates.index("phi")]
        'torsion_4_6_8_14'
    """

    rows: Tensor
    order: Tensor
    first: Tensor
    rotors: Tensor
    rotor_rows: Tensor
    rotor_mean: Tensor

    def __init__(self, molecule: Molecule, *, fold_rotors: bool = True) -> None:
        zmatrix = build_zmatrix(molecule, fold_rotors)
        rows, names = zmatrix.rows, zmatrix.names
        n_torsions = len(zmatrix.torsions + zmatrix.rotors)
        circular = torch.arange(len(names)) >= len(names) - n_torsions
        super().__init__((len(rows) + 3, 3), names, circular)
        aliases = zmatrix.aliases(find_backbone(molecule))
        self.aliases = {alias: names.index(name) for alias, name in aliases.items()}
        self.n_torsions, self.n_rotors = n_torsions, len(zmatrix.rotors)
        plain = len(names) - n_torsions
        self._splits = (plain - 2 * self.n_rotors, plain, len(names) - self.n_rotors)
        self._index_rows(zmatrix)
        self._set_reference(molecule, zmatrix)
        positions = torch.tensor(molecule.positions, dtype=torch.float64)
        self.origin = self.inverse(positions)[0].to(torch.get_default_dtype())
        amides = {index for alias, index in self.aliases.items() if alias.startswith("omega")}
        turning = range(self.n_coordinates - self.n_torsions, self.n_coordinates - self.n_rotors)
        self.rotatable = torch.tensor([i for i in turning if i not in amides], dtype=torch.long)

    def _index_rows(self, zmatrix: ZMatrix) -> None:
        """Set the buffers that say which row is which atom."""
        zero, one, two = zmatrix.frame
        rows = [Row(one, zero, two, two), Row(two, one, zero, zero), *zmatrix.rows]
        atoms = [zero, *(row.atom for row in rows)]
        place = {atom: i for i, atom in enumerate(atoms)}
        firsts = [place[row.first] for row in rows if row.first is not None]
        self.placement = Placement([place[row.parent] for row in rows[1:]], firsts)
        table = [(row.atom, row.parent, row.grandparent, row.reference) for row in rows]
        hydrogens = (zmatrix.rotors, zmatrix.seconds, zmatrix.thirds)
        rotors = [[row.atom for row in group] for group in hydrogens]
        bonds = torch.tensor([[place[a] - 1 for a in group] for group in rotors], dtype=torch.long)
        for name, tensor in {
            "rows": torch.tensor(table).T.contiguous(),
            "order": torch.tensor(atoms).argsort(),
            "first": torch.tensor([f - 2 for f in firsts], dtype=torch.long),
            "rotors": torch.tensor(rotors, dtype=torch.long),
            "rotor_rows": torch.cat((bonds, bonds + len(rows) - 1), 1),  # and their angles
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    def _set_reference(self, molecule: Molecule, zmatrix: ZMatrix) -> None:
        """Put the intervals and the wells of the rotors around the reference structure."""
        reference = torch.tensor(molecule.positions, dtype=torch.float64).unsqueeze(0)
        r, theta, torsion, phase = self._measure(reference)
        self._check_reference(r[:, 0], theta[:, 0])
        self.register_buffer("rotor_mean", self._gaps(torsion, phase)[1])
        bent = torch.cat((r, theta))  # the hydrogens of a rotor share their intervals
        bent[self.rotor_rows] = bent[self.rotor_rows].mean(0, keepdim=True).expand(3, -1, -1)
        r, theta = bent[:, 0].tensor_split((len(r),))
        signed = [keeps_sign(molecule, row) for row in zmatrix.phases]
        keep = torch.tensor(signed, dtype=torch.bool)
        self.intervals = around_reference(r, theta, phase[: len(signed), 0], keep)

    def index(self, name: str) -> int:
        """Return the column of a coordinate, by its name or as ``phi``, ``psi_2``, ``omega_1``.

        Backbone torsions are numbered along the chain, see
        :func:`~pyrocg.zmatrix.find_backbone`; the only one of its kind needs no number.
        """
        if name in self.aliases:
            return self.aliases[name]
        if name in self.names:
            return self.names.index(name)
        known = ", ".join([*self.aliases, *self.names[self.n_coordinates - self.n_torsions :]])
        raise KeyError(f"expected the name of a coordinate, such as {known}; got {name!r}")

    def _forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        batch = u.shape[:-1]
        n_atoms, n_rotors = self.event_shape[0], self.n_rotors
        u = u.reshape(-1, self.n_coordinates).T.contiguous()
        bounded, modes, torsion, turn = u.tensor_split(self._splits)
        log_gaps: Tensor | float = 0.0
        if n_rotors:
            mean = turn / 3 + self.rotor_mean.to(u.dtype)
            level, cosine, sine = bounded[self.rotor_rows]
            rows = spread(level, cosine, sine, torch.cat((mean, mean)))
            bounded = bounded.index_copy(0, self.rotor_rows.flatten(), rows.flatten(0, 1))
            cosine, sine = modes.tensor_split(2)
            (to_second, _, from_third), log_gaps = spread_gaps(cosine, sine, mean)
            torsion = torch.cat((torsion, mean - (to_second - from_third) / 3))
            modes = torch.cat((to_second, -from_third))
        values, log_slopes, y = self.intervals(bounded)
        r, theta, phase = values.tensor_split((n_atoms - 1, 2 * n_atoms - 3))
        x = self.placement(r, theta, torsion, torch.cat((phase, modes)))
        x = x.index_select(0, self.order).permute(2, 0, 1).reshape(*batch, n_atoms, 3)
        # the smaller of the angle and its supplement is exact where the angle rounds to pi
        fold = math.pi * (-y[n_atoms - 1 : 2 * n_atoms - 3].abs()).sigmoid()
        log_abs_det = log_slopes.sum(0) + 2 * r.log().sum(0) + fold.sin().log().sum(0)
        return x.contiguous(), (log_abs_det + log_gaps).reshape(batch)

    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[:-2]
        r, theta, torsion, phase = self._measure(x.reshape(-1, *self.event_shape))
        gaps, mean = self._gaps(torsion, phase)
        n_plain = len(phase) - 2 * self.n_rotors
        lower = self.intervals.bounds[0, len(r) + len(theta) :].to(x.dtype)
        phase = lower + torch.remainder(phase[:n_plain] - lower, 2 * math.pi)
        values = torch.cat((r, theta, phase))
        self._check_inside(values, gaps)
        bounded = self.intervals.inverse(values)
        rows = torch.cat(collect(bounded[self.rotor_rows], torch.cat((mean, mean))))
        bounded = bounded.index_copy(0, self.rotor_rows.flatten(), rows)
        turn = 3 * (mean - self.rotor_mean.to(x.dtype))
        circular = wrap(torch.cat((torsion[: self.n_torsions - self.n_rotors], turn)))
        u = torch.cat((bounded, *collect_gaps(gaps, mean), circular)).T
        u = u.reshape(*batch, self.n_coordinates)
        return u, self._forward(u)[1]

    def relabel(self, x: Tensor) -> Tensor:
        """Return x with the hydrogens of each rotor relabelled in a circle, as the map writes it.

        Of the three equivalent labellings this is the one whose mean torsion is within 60 degrees
        of the reference. ``forward(inverse(x))`` is this configuration, in the frame.
        """
        flat = x.reshape(-1, *self.event_shape)
        _, _, torsion, phase = self._measure(flat)
        mean = self._gaps(torsion, phase)[1] - self.rotor_mean.to(x.dtype)
        shift = torch.floor(1.5 * mean / math.pi + 0.5).long()
        source = (torch.arange(3, device=x.device)[:, None, None] - shift) % 3
        index = self.rotors.unsqueeze(-1).expand(-1, -1, len(flat)).gather(0, source)
        index = index.flatten(0, 1).T.unsqueeze(-1).expand(-1, -1, 3)
        return flat.index_copy(1, self.rotors.flatten(), flat.gather(1, index)).reshape(x.shape)

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return bonds, angles, torsions and phases of (batch, n_atoms, 3), batch last."""
        r, theta, tau = measure(x, self.rows)
        own = torch.cat((tau.new_zeros(1, len(x)), tau[: self.n_torsions]))
        return r, theta, own[1:], wrap(tau[self.n_torsions :] - own[self.first])

    def _gaps(self, torsion: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return gaps (3, n_rotors, batch) and mean torsion (n_rotors, batch) of the hydrogens."""
        n = self.n_rotors
        second, third = phase[len(phase) - 2 * n :].tensor_split(2)
        first_gap, last_gap = second.remainder(2 * math.pi), (-third).remainder(2 * math.pi)
        gaps = torch.stack((first_gap, 2 * math.pi - first_gap - last_gap, last_gap))
        return gaps, torsion[len(torsion) - n :] + (first_gap - last_gap) / 3

    def _check_reference(self, r: Tensor, theta: Tensor) -> None:
        """Refuse coincident atoms and lines of atoms, which define no dihedral."""
        if bool((r < 1e-3).any()):
            name = self.names[int(r.argmin())]
            raise ValueError(f"expected bonds longer than 0.001 nm, got {name} = {r.min():.2g} nm")
        sine = theta.sin()
        if bool((sine < MINIMUM_SINE).any()):
            i = int(sine.argmin())
            raise ValueError(
                f"expected bent angles, got {self.names[len(r) + i]} = "
                f"{math.degrees(theta[i]):.1f} degrees in the reference structure; "
                "linear groups have no torsions: use CartesianCoordinates"
            )

    def _check_inside(self, values: Tensor, gaps: Tensor) -> None:
        """Refuse values outside their intervals: broken bonds, mirror images, NaN."""
        turned = ~(gaps > 0).all(0)
        outside = torch.cat((self.intervals.outside(values), turned))
        bad = outside.any(1).nonzero().flatten().tolist()
        if not bad:
            return
        count = f"{int(outside.any(0).sum())} of {values.shape[1]} configurations"
        names = ", ".join(self.names[i] for i in bad[:3])
        if not bool(values.isfinite().all()):
            raise ValueError(f"expected finite positions of separate atoms, got NaN in {names}")
        if all(self.names[i].startswith("phase") for i in bad):
            raise ValueError(
                f"expected the handedness of the reference structure, got {count} inverted at "
                f"{names}: the mirror image, or one of a centre; use a reference structure of "
                "the same stereoisomer, with the same labels of equal atoms"
            )
        raise ValueError(
            f"expected bonds of 0.5 to 1.5 times the reference, bent angles and the handedness "
            f"of the reference, got {count} outside at {names}"
        )
