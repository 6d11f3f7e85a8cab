"""Graphs of bonds: neighbours, distances, rings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["distances", "neighbours", "ring_size"]


def neighbours(n_atoms: int, bonds: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the sorted neighbours of every atom.

    Args:
        n_atoms: number of atoms.
        bonds: pairs of 0-based indices.

    Example:
        >>> neighbours(3, [(0, 1), (2, 1)])
        [[1], [0, 2], [1]]
    """
    adjacent: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in bonds:
        adjacent[i].add(j)
        adjacent[j].add(i)
    return [sorted(a) for a in adjacent]


def distances(adjacent: Sequence[Sequence[int]], start: int) -> dict[int, int]:
    """Return the number of bonds from ``start`` to every atom that it is connected to.

    Args:
        adjacent: neighbours of every atom, see :func:`neighbours`.
        start: an atom.

    Example:
        >>> distances([[1], [0, 2], [1], []], 0)
        {0: 0, 1: 1, 2: 2}
    """
    distance = {start: 0}
    todo = [start]
    for atom in todo:
        for b in adjacent[atom]:
            if b not in distance:
                distance[b] = distance[atom] + 1
                todo.append(b)
    return distance


def ring_size(adjacent: Sequence[Sequence[int]], i: int, j: int) -> int | None:
    """Return the number of atoms of the smallest ring through a bond, None if it is in none.

    Args:
        adjacent: neighbours of every atom, see :func:`neighbours`.
        i: an atom.
        j: another that it is bonded to.

    Example:
        >>> triangle_with_a_tail = neighbours(4, [(0, 1), (1, 2), (2, 0), (2, 3)])
        >>> ring_size(triangle_with_a_tail, 0, 1), ring_size(triangle_with_a_tail, 2, 3)
        (3, None)
    """
    without = [[b for b in around if {a, b} != {i, j}] for a, around in enumerate(adjacent)]
    other_way = distances(without, i).get(j)
    return None if other_way is None else other_way + 1
