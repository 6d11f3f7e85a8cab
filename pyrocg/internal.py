"""Bonds, angles, torsions and sibling phases as reduced coordinates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrocg.backbones import find_backbone
from pyrocg.bijections import Coordinates
from pyrocg.bonds import turns
from pyrocg.distributions import wrap
from pyrocg.intervals import around_reference
from pyrocg.placement import Placement, measure
from pyrocg.rotors import collect, collect_gaps, spread, spread_gaps
from pyrocg.symmetries import check_rigid_motion, told_apart
from pyrocg.zmatrix import MINIMUM_SINE, Row, ZMatrix, build_zmatrix, keeps_sign

if TYPE_CHECKING:  # importing OpenMM takes a second and only the type is needed
    from pyrocg.molecules import Molecule

__all__ = ["InternalCoordinates"]


def _zmatrix(molecule: Molecule, fold_rotors: bool) -> ZMatrix:
    """The Z-matrix, whose rotors are groups that the molecule's energy does not tell apart."""
    zmatrix = build_zmatrix(molecule, fold_rotors)
    hydrogens = zip(zmatrix.rotors, zmatrix.seconds, zmatrix.thirds, strict=True)
    apart = told_apart(molecule, [tuple(row.atom for row in rows) for rows in hydrogens])
    labelled = {atom for group in apart for atom in group}
    return build_zmatrix(molecule, fold_rotors, labelled) if labelled else zmatrix


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

    Three hydrogens are a rotor only if relabelling them does not change the molecule's energy;
    others have a plain torsion. :attr:`rotatable` are the plain torsions about bonds that turn
    (:func:`~pyrocg.bonds.turns`): not those of amides, double bonds and aromatic rings.

    Args:
        molecule: at least three atoms, connected; no three bonded atoms of the tree in line.
        fold_rotors: use one well of each rotor; if not, it has a plain torsion.

    Raises:
        ValueError: the molecule or its reference geometry has no such coordinates, or its energy
            changes when the whole molecule moves.

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
        check_rigid_motion(molecule)
        zmatrix = _zmatrix(molecule, fold_rotors)
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
        turning = [
            i
            for i, row in enumerate(zmatrix.torsions, start=len(names) - n_torsions)
            if turns(molecule, row.grandparent, row.parent) and i not in amides
        ]
        self.rotatable = torch.tensor(turning, dtype=torch.long)

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
        self._check_reference(molecule, r[:, 0], theta[:, 0])
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
        :func:`~pyrocg.backbones.find_backbone`; the only one of its kind needs no number.

        Raises:
            KeyError: there is no such coordinate; the error names those there are.
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

    def _check_reference(self, molecule: Molecule, r: Tensor, theta: Tensor) -> None:
        """Refuse coincident atoms and lines of atoms, which define no dihedral."""
        if bool((r < 1e-3).any()):
            name = self.names[int(r.argmin())]
            raise ValueError(f"expected bonds longer than 0.001 nm, got {name} = {r.min():.2g} nm")
        sine = theta.sin()
        if bool((sine < MINIMUM_SINE).any()):
            i = int(sine.argmin())
            label = self.names[len(r) + i]
            atoms, numbers = list(molecule.topology.atoms()), label.split("_")[-3:]
            raise ValueError(
                f"expected bent angles, got {'-'.join(atoms[int(n)].name for n in numbers)} "
                f"({label}) = {math.degrees(theta[i]):.1f} degrees in the reference structure; "
                "linear groups (nitriles, alkynes) have no torsions: use CartesianCoordinates"
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
