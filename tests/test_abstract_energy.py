import math

import pytest
import torch

from pyrocg.energies.abstract import CappedEnergy, Energy
from pyrocg.energies.toy import Harmonic


class Repulsion(Energy):
    """1/x: infinite, with an infinite force, at 0."""

    def __init__(self):
        super().__init__((1,))

    def _energy(self, x):
        return 1.0 / x[:, 0]


class Given(Energy):
    """The energy is the configuration."""

    def __init__(self):
        super().__init__((1,))

    def _energy(self, x):
        return x[:, 0]


def test_calls_and_non_finite_energies_are_counted():
    energy = Repulsion()
    energy(torch.tensor([[[1.0], [0.0]], [[2.0], [math.nan]]]))
    energy(torch.ones(1))
    assert (energy.calls, energy.nonfinite) == (5, 2)


def test_a_toy_reports_the_number_of_non_finite_energies():
    energy = Repulsion()
    assert energy.report() == ""
    energy(torch.tensor([[1.0], [0.0], [2.0]]))
    assert energy.report() == "1 of 3 energies were not finite"


class Pairs(Energy):
    """The sum of all inverse distances."""

    def __init__(self, atom_names=()):
        super().__init__((3, 3), atom_names)

    def _energy(self, x):
        i, j = torch.triu_indices(3, 3, 1)
        return (1 / (x[:, i] - x[:, j]).norm(dim=-1)).sum(-1)


def overlapping(i, j):
    x = torch.arange(9.0).reshape(3, 3).repeat(2, 1, 1)
    x[0, j] = x[0, i]
    return x


def test_a_molecule_reports_the_closest_atoms_of_the_latest():
    energy = Pairs(["N", "CA", "C"])
    energy(overlapping(0, 1))
    energy(overlapping(1, 2).reshape(1, 2, 3, 3))
    energy(torch.arange(9.0).reshape(3, 3))
    assert energy.report() == (
        "2 of 5 energies were not finite; in the latest, "
        "the closest atoms are CA (index 1) and C (index 2), 0 nm apart"
    )
    energy(torch.full((3, 3), math.nan))
    assert energy.report().endswith("the position of N (index 0) is not finite")


def test_atoms_without_names_are_reported_by_index():
    energy = Pairs()
    energy(overlapping(0, 2))
    assert "the closest atoms are atom 0 and atom 2, 0 nm apart" in energy.report()


def test_counting_does_not_wait_for_the_device():
    """A meta tensor has no values: asking for one raises."""
    energy, x = Pairs(), overlapping(0, 2).to("meta")
    energy._note_nonfinite(torch.zeros(2, dtype=torch.bool, device="meta"), x)
    assert energy._offender.shape == (3, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reports_like_the_cpu():
    here, there = Pairs(), Pairs()
    for x in (overlapping(0, 1), overlapping(1, 2), overlapping(0, 1)[1:]):
        here(x)
        there(x.cuda())
    assert here.report() == there.report() != ""


def test_any_batch_shape():
    energy = Harmonic(dim=2)
    assert energy(torch.ones(2)).shape == ()
    assert energy(torch.ones(3, 4, 2)).shape == (3, 4)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, dtype=torch.long), TypeError, "expected a floating-point tensor"),
        ([1.0, 2.0], TypeError, "expected a floating-point tensor of positions, got list"),
        (torch.ones(5, 3), ValueError, r"expected positions of shape \(..., 2\), got \(5, 3\)"),
        (torch.ones(()), ValueError, "expected positions of shape"),
        (torch.ones(0, 2), ValueError, "expected at least one configuration"),
    ],
)
def test_energy_refuses(x, error, message):
    with pytest.raises(error, match=message):
        Harmonic(dim=2)(x)


def capped():
    return CappedEnergy(Given(), cap=10.0, softness=2.0)


def test_cap_is_the_formula_and_monotone_up_to_the_ceiling():
    values = [-5.0, 9.9, 10.0, 10.1, 12.0, 1e3, 1e8, 1e9, 1e15, 1e300, math.inf]
    out = capped()(torch.tensor(values, dtype=torch.float64)[:, None])
    assert out[:3].tolist() == values[:3]
    assert out[4].item() == pytest.approx(10 + 2 * math.log(2))
    assert bool((out.diff() >= 0).all())
    assert out[-1].item() == capped().ceiling == out.max().item() == 50.0
    assert capped()(torch.tensor([[math.nan]])).item() == 50.0


def test_cap_is_smooth_and_its_force_consistent():
    x = torch.tensor([[5.0], [9.999], [10.001], [14.0], [1e4]], dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(capped(), x)
    (gradient,) = torch.autograd.grad(capped()(x).sum(), x)
    expected = 1 / (1 + (x.detach() - 10).clamp(min=0) / 2)
    torch.testing.assert_close(gradient, expected)


def test_configurations_without_energy_have_no_force():
    x = torch.tensor([[0.0], [0.5], [math.nan]], requires_grad=True)
    (gradient,) = torch.autograd.grad(CappedEnergy(Repulsion(), cap=10.0)(x).sum(), x)
    assert gradient.flatten().tolist() == [0.0, -4.0, 0.0]


def test_beyond_the_ceiling_there_is_no_force():
    x = torch.tensor([[1e12]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(capped()(x).sum(), x)
    assert gradient.item() == 0.0


def test_cap_counts_and_hands_on():
    energy = Given()
    cap = CappedEnergy(energy, cap=10.0)
    cap(torch.tensor([[math.inf], [1.0]]))
    assert (energy.calls, energy.nonfinite, cap.calls, cap.nonfinite) == (2, 1, 2, 0)
    assert cap.exact is energy.exact is energy
    assert cap.report() == energy.report() == "1 of 2 energies were not finite"


def test_cap_refuses_a_softness_of_zero():
    with pytest.raises(ValueError, match="expected softness > 0"):
        CappedEnergy(Given(), cap=1.0, softness=0.0)
