"""Positions from bond lengths, angles and dihedrals along a tree, with an analytic backward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Placement", "measure"]


class Placement(nn.Module):
    r"""Places a tree of atoms: atom 0 at the origin, 1 on the z axis, 2 in the xz plane, x > 0.

    Atom c with parent p and grandparent g sits at

    .. math:: x_c = x_p + r_c \, (\sin\theta_c\, (\cos\tau_c X_p + \sin\tau_c Y_p)
              - \cos\theta_c\, Z_p),

    where :math:`(X_p, Y_p, Z_p)` is the frame of p: Z points from g to p, X towards the
    reference of the dihedral. The work goes level by level over the atoms that have children,
    then over all atoms at once. Backward needs no recursion: moving a coordinate of c turns or
    shifts everything behind c as a rigid body, so the derivative is a component of the total
    force or torque of these atoms.

    Rows are in the order of placement and the batch comes last, which keeps every inner loop long.

    Args:
        parents: parent of atoms 2, 3, ...; parents come in any order.
        firsts: for the last ``len(firsts)`` atoms, the atom (2, 3, ...) whose dihedral they are
            relative to: 2 for a sibling of frame atom 2, else an atom with a torsion of its own.
    """

    atom_frame: Tensor
    inner: Tensor
    inner_frame: Tensor
    first: Tensor
    behind: Tensor
    followers: Tensor
    roots: Tensor

    def __init__(self, parents: Sequence[int], firsts: Sequence[int]) -> None:
        super().__init__()
        n = len(parents) + 2
        above = {1: 0} | dict(enumerate(parents, start=2))
        path: dict[int, list[int]] = {1: [1]}  # from an atom down to the frame
        for c in range(2, n):
            path[c], p = [c], above[c]
            while p > 0:
                path[c].append(p)
                p = above[p]
        depth = {c: len(path[c]) for c in path}
        inner = sorted({p for p in parents if p >= 2}, key=lambda c: (depth[c], c))
        row = {1: 0, 0: 1} | {c: i + 2 for i, c in enumerate(inner)}
        levels = [depth[c] for c in inner]
        starts = [i for i in range(len(inner)) if i == 0 or levels[i] != levels[i - 1]]
        self._levels = list(pairwise([*starts, len(inner)]))
        behind = torch.zeros(n - 1, n)  # behind[c - 1, j]: atom j moves with the bond of atom c
        for j, moved_by in path.items():
            behind[[c - 1 for c in moved_by], j] = 1.0
        followers = torch.zeros(n - 2 - len(firsts), len(firsts))
        for i, f in enumerate(firsts):
            followers[f - 2, i] = 1.0
        # children of atom 1 see the frame (x, y, z), children of atom 0 its half-turn about x
        roots = torch.zeros(2, 4, 3, 1)
        roots[0, [0, 1, 2], [0, 1, 2]] = torch.ones(3, 1)
        roots[1, [0, 1, 2], [0, 1, 2]] = torch.tensor([[1.0], [-1.0], [-1.0]])
        for name, tensor in {
            "atom_frame": torch.tensor([row[p] for p in parents]),
            "inner": torch.tensor([c - 2 for c in inner], dtype=torch.long),
            "inner_frame": torch.tensor([row[above[c]] for c in inner], dtype=torch.long),
            "first": torch.tensor([f - 2 for f in firsts], dtype=torch.long),
            "behind": behind,
            "followers": followers,
            "roots": roots,
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, r: Tensor, theta: Tensor, torsion: Tensor, phase: Tensor) -> Tensor:
        """Return positions (n_atoms, 3, batch).

        Args:
            r: bond lengths of atoms 1, 2, ..., shape (n_atoms - 1, batch).
            theta: angles of atoms 2, 3, ..., shape (n_atoms - 2, batch).
            torsion: dihedrals of atoms 3, 4, ..., that have their own, (n_torsions, batch).
            phase: dihedrals of the others relative to their first sibling, (n_phases, batch).
        """
        return _Place.apply(r, theta, torsion, phase, self)


def _place(r: Tensor, theta: Tensor, tau: Tensor, tree: Placement) -> tuple[Tensor, ...]:
    """Return positions (n, 3, batch), parent frames (n - 2, 4, 3, batch), directions, normals."""
    batch = r.shape[-1]
    local = torch.stack((tau.cos(), tau.sin(), theta.cos(), theta.sin(), r[1:]), 1).unsqueeze(2)
    frames = r.new_empty(2 + len(tree.inner), 4, 3, batch)
    frames[:2] = tree.roots
    frames[0, 3, 2] = r[0]
    inner = local.index_select(0, tree.inner)
    for a, b in tree._levels:
        x, y, z, origin = frames.index_select(0, tree.inner_frame[a:b]).unbind(1)
        ct, st, c, s, length = inner[a:b].unbind(1)
        m = ct * x + st * y
        d = s * m - c * z
        new = frames[2 + a : 2 + b]
        torch.add(s * z, c * m, out=new[:, 0])
        new[:, 0].neg_()
        torch.sub(ct * y, st * x, out=new[:, 1])
        new[:, 2] = d
        torch.addcmul(origin, length, d, out=new[:, 3])
    parent = frames.index_select(0, tree.atom_frame)
    x, y, z, origin = parent.unbind(1)
    ct, st, c, s, length = local.unbind(1)
    d = s * (ct * x + st * y) - c * z
    positions = r.new_empty(len(r) + 1, 3, batch)
    positions[0] = 0.0
    positions[1] = frames[0, 3]
    torch.addcmul(origin, length, d, out=positions[2:])
    return positions, parent, d, ct * y - st * x


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, r: Tensor, theta: Tensor, torsion: Tensor, phase: Tensor, tree: Placement
    ) -> Tensor:
        own = torch.cat((torsion.new_zeros(1, torsion.shape[-1]), torsion))
        tau = torch.cat((own, own.index_select(0, tree.first) + phase))
        positions, parent, direction, normal = _place(r, theta, tau, tree)
        ctx.tree = tree
        ctx.save_for_backward(positions, parent, direction, normal)
        return positions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tree = ctx.tree
        positions, parent, direction, normal = ctx.saved_tensors
        n, _, batch = positions.shape
        moment = torch.cat((gradient, torch.linalg.cross(positions, gradient, dim=1)), 1)
        total = (tree.behind.to(gradient) @ moment.reshape(n, -1)).reshape(n - 1, 6, batch)
        force = total[1:, :3]
        _, _, axis, origin = parent.unbind(1)
        torque = total[1:, 3:] - torch.linalg.cross(origin, force, dim=1)
        d_r = torch.cat((total[:1, 2], (direction * force).sum(1)))
        d_theta = -(normal * torque).sum(1)
        d_tau = (axis * torque).sum(1)
        n_own = len(tree.followers)
        d_phase = d_tau[n_own:]
        d_own = d_tau[:n_own] + tree.followers.to(gradient) @ d_phase
        return d_r, d_theta, d_own[1:], d_phase, None


def measure(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bond lengths, angles and dihedrals of positions (batch, n_atoms, 3), batch last.

    Args:
        x: positions.
        rows: atom, parent, grandparent and reference of atoms 1, 2, ... in the order of placement,
            shape (4, n_atoms - 1); angles start at the second column, dihedrals at the third.
    """
    atom, parent, grandparent, reference = (x[:, index] for index in rows)
    bond, back = atom - parent, grandparent - parent
    r = bond.norm(dim=-1)
    normal = torch.linalg.cross(back, bond)
    theta = torch.atan2(normal.norm(dim=-1), (back * bond).sum(-1))
    # both normals are perpendicular to the common bond, so only their own angle is left
    other = torch.linalg.cross(back, reference - parent)
    axis = -back / back.norm(dim=-1, keepdim=True)
    turn = (torch.linalg.cross(other, normal) * axis).sum(-1)
    tau = torch.atan2(turn, (other * normal).sum(-1))
    return r.T, theta[:, 1:].T, tau[:, 2:].T
