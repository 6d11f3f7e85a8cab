"""The contract of every energy: shapes, dtypes, forces, counting, capping."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrocg.energies.abstract import CappedEnergy, Energy
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.energies.toy import DoubleWell, GaussianMixture, Harmonic, ManyWell, MuellerBrown
from pyrocg.molecules import alanine_dipeptide

ENERGIES: dict[str, Callable[[], Energy]] = {
    "double_well": DoubleWell,
    "harmonic": lambda: Harmonic(3, stiffness=[1.0, 2.0, 3.0], mean=0.3),
    "mixture": lambda: GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], [1.0, 2.0]),
    "mueller_brown": MuellerBrown,
    "many_well": lambda: ManyWell(4),
    "openmm": lambda: OpenMMEnergy(alanine_dipeptide(), platform="Reference", workers=1),
    "capped": lambda: CappedEnergy(DoubleWell(), cap=-2.0, softness=1.5),
}


@pytest.fixture(params=ENERGIES, scope="module")
def energy(request: pytest.FixtureRequest) -> Energy:
    return ENERGIES[request.param]()


def configurations(energy: Energy, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(*batch, *energy.event_shape, dtype=dtype, generator=generator)
    if isinstance(energy, OpenMMEnergy):
        return torch.tensor(alanine_dipeptide().positions).to(dtype) + 0.002 * noise
    return 0.5 * noise


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_batch_shape_and_the_dtype_are_kept(energy, batch, dtype):
    x = configurations(energy, *batch, dtype=dtype)
    result = energy(x)
    assert result.shape == batch
    assert result.dtype == dtype
    exact = energy(x.double())
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_batch_equals_its_members(energy):
    x = configurations(energy, 2, 3)
    members = torch.stack([energy(member) for member in x.reshape(-1, *energy.event_shape)])
    torch.testing.assert_close(energy(x).flatten(), members, rtol=1e-13, atol=1e-13)


def test_the_gradient_is_the_derivative(energy):
    x = configurations(energy, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    step = 1e-5 if isinstance(energy, OpenMMEnergy) else 1e-4
    with torch.no_grad():
        change = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    expected = (gradient * direction).flatten(1).sum(-1)
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-5)


def test_gradcheck(energy):
    if isinstance(energy, OpenMMEnergy):  # 66 coordinates on the scale of 100 000 kJ/mol/nm^2
        options = {"eps": 1e-6, "atol": 1e-2, "rtol": 1e-4}
    else:
        options = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-5}
    x = configurations(energy, 1).requires_grad_()
    assert torch.autograd.gradcheck(energy, (x,), **options)


def test_every_evaluated_configuration_is_counted(energy):
    energy = copy.deepcopy(energy)
    before = energy.calls
    energy(configurations(energy, 2, 3))
    energy(configurations(energy))
    assert energy.calls == before + 7
    assert energy.nonfinite == 0


def test_an_empty_batch_is_refused(energy):
    with pytest.raises(ValueError, match="at least one configuration"):
        energy(configurations(energy, 0))
    with pytest.raises(ValueError, match="at least one configuration"):
        energy(configurations(energy, 3, 0))


def test_wrong_shapes_and_dtypes_are_refused(energy):
    x = configurations(energy, 2)
    with pytest.raises(ValueError, match="expected positions of shape"):
        energy(x[..., :-1])
    with pytest.raises(ValueError, match="expected positions of shape"):
        energy(torch.tensor(1.0))
    with pytest.raises(TypeError, match="floating-point"):
        energy(torch.zeros(2, *energy.event_shape, dtype=torch.int64))
    with pytest.raises(TypeError, match="floating-point"):
        energy(x.numpy())


def test_copies_give_the_same_numbers(energy):
    x = configurations(energy, 3)
    expected = energy(x)
    for twin in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(twin(x), expected)
        twin.load_state_dict(energy.state_dict())
        assert torch.equal(twin(x), expected)


def test_nan_positions_give_a_nan_that_is_counted(energy):
    if isinstance(energy, CappedEnergy):
        pytest.skip("a cap makes it finite")
    energy = copy.deepcopy(energy)
    x = configurations(energy, 3)
    x[1].view(-1)[0] = torch.nan
    assert torch.isfinite(energy(x)).tolist() == [True, False, True]
    assert energy.nonfinite == 1
    assert "1 of " in energy.report()
    assert ("is not finite" in energy.report()) == (len(energy.event_shape) == 2)


def test_a_cap_is_off_in_the_exact_energy(energy):
    x = configurations(energy, 4)
    exact = energy.exact
    assert CappedEnergy(energy, cap=0.0).exact is exact
    assert torch.equal(CappedEnergy(energy, cap=1e6)(x), energy(x))


@pytest.mark.parametrize("softness", [0.5, 20.0])
def test_a_cap_is_the_documented_function_with_its_derivative(energy, softness):
    x = configurations(energy, 6).requires_grad_()
    plain = energy(x)
    cap = float(plain.detach().median())
    capped = CappedEnergy(energy, cap, softness)(x)
    excess = (plain.detach() - cap).clamp(min=0) / softness
    expected = torch.where(excess > 0, cap + softness * excess.log1p(), plain.detach())
    torch.testing.assert_close(capped.detach(), expected)
    (gradient,) = torch.autograd.grad(capped.sum(), x)
    (force,) = torch.autograd.grad(plain.sum(), x)
    scale = 1 / (1 + excess.reshape(-1, *[1] * len(energy.event_shape)))
    torch.testing.assert_close(gradient, scale * force)
    assert 0 < int((excess > 0).sum()) < 6


class Broken(Energy):
    """An energy with a wall that is infinite at 0 and NaN below it."""

    def __init__(self) -> None:
        super().__init__((1,))

    def _energy(self, x: Tensor) -> Tensor:
        return 1 / x.squeeze(-1).sqrt()


def test_a_cap_turns_non_finite_energies_into_the_ceiling_without_a_force():
    energy = Broken()
    capped = CappedEnergy(energy, cap=10.0, softness=1.0)
    x = torch.tensor([[0.0], [-1.0], [torch.nan], [4.0]], requires_grad=True)
    result = capped(x)
    assert result.tolist() == [30.0, 30.0, 30.0, 0.5]
    assert (energy.nonfinite, capped.nonfinite) == (3, 0)


def test_a_cap_of_overlapping_atoms_has_no_force():
    energy = OpenMMEnergy(alanine_dipeptide(), platform="Reference", workers=1)
    capped = CappedEnergy(energy, cap=1000.0)
    x = configurations(energy, 3)
    x[1, 3] = x[1, 9]
    x[2, 0, 0] = torch.nan
    x.requires_grad_()
    result = capped(x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert result[1:].tolist() == [capped.ceiling] * 2
    assert torch.isfinite(gradient).all()
    assert gradient[0].abs().max() > 0
    assert gradient[1:].abs().max() == 0
    assert energy.nonfinite == 2


def test_a_cap_needs_a_positive_softness():
    with pytest.raises(ValueError, match="softness"):
        CappedEnergy(DoubleWell(), cap=0.0, softness=0.0)
