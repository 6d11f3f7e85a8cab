from pyrocg.graphs import distances, neighbours, ring_size


def test_distances_are_numbers_of_bonds():
    adjacent = neighbours(6, [(0, 1), (1, 2), (2, 3), (3, 0), (3, 4)])
    assert distances(adjacent, 4) == {4: 0, 3: 1, 0: 2, 2: 2, 1: 3}


def test_the_smallest_of_two_fused_rings():
    """A square and a triangle that share the bond 0-1, and a tail."""
    adjacent = neighbours(6, [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 1), (4, 5)])
    sizes = {(0, 1): 3, (1, 2): 4, (2, 3): 4, (0, 4): 3, (4, 5): None}
    assert {bond: ring_size(adjacent, *bond) for bond in sizes} == sizes
