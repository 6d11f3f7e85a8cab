import pytest
import torch
from toy_models import roughened

from pyrocg.couplings import AffineCoupling, random_halves

F64 = torch.float64


@pytest.mark.parametrize("n", [1, 2, 5])
def test_affine_coupling_inverts_and_knows_its_jacobian(n):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    coupling = roughened(AffineCoupling(order, 3, (8,)))
    x, condition = torch.randn(n, dtype=F64), torch.randn(3, dtype=F64)
    y, log_abs_det = coupling(x, condition)
    back, log_abs_det_back = coupling.inverse(y, condition)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_abs_det_back, log_abs_det)
    jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v, condition)[0], x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_abs_det)


def test_two_couplings_change_every_coordinate():
    first, second = (roughened(AffineCoupling(order, 4, (8,))) for order in random_halves(5, 2))
    x, condition = torch.randn(5, dtype=F64), torch.zeros(4, dtype=F64)
    y, _ = second(first(x, condition)[0], condition)
    assert bool((y != x).all())


def test_an_affine_coupling_leaves_the_first_half_of_its_order_alone():
    coupling = roughened(AffineCoupling(torch.tensor([3, 1, 0, 2, 4]), 1, (8,)))
    x = torch.randn(5, dtype=F64)
    y, _ = coupling(x, torch.zeros(1, dtype=F64))
    assert (y == x).tolist() == [False, True, False, True, False]


def test_pairs_of_couplings_halve_the_coordinates_in_different_ways():
    halves = [set(order[:6].tolist()) for order in random_halves(12, 6)]
    assert len({frozenset(half) for half in halves}) == len(halves) == 6
    assert all(a.isdisjoint(b) for a, b in zip(halves[::2], halves[1::2], strict=True))
