import pytest
import torch

from pyrocg.energies.abstract import CappedEnergy
from pyrocg.energies.toy import Harmonic
from pyrocg.target import BoltzmannTarget
from pyrocg.units import thermal_energy


def test_log_prob_is_minus_t_beta_u():
    energy = Harmonic(dim=3, stiffness=2.0)
    x = torch.randn(5, 3, dtype=torch.float64)
    target = BoltzmannTarget(energy, temperature=330.0)
    torch.testing.assert_close(target.log_prob(x), -energy(x) / thermal_energy(330.0))
    torch.testing.assert_close(target.log_prob(x, temper=0.25), 0.25 * target.log_prob(x))
    torch.testing.assert_close(target.log_prob(x, torch.tensor(0.5)), 0.5 * target.log_prob(x))
    assert target.event_shape == (3,)


def test_gradient_is_the_force_over_kt():
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    target = BoltzmannTarget(Harmonic(dim=2), beta=3.0)
    (gradient,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    torch.testing.assert_close(gradient, -3.0 * x)


def test_exact_is_free_of_caps():
    energy = Harmonic(dim=1)
    capped = BoltzmannTarget(CappedEnergy(CappedEnergy(energy, cap=1.0), cap=0.5), beta=2.0)
    x = torch.tensor([[10.0]])
    assert capped.log_prob(x).item() > -100.0
    assert capped.exact.log_prob(x).item() == -100.0
    assert capped.exact.energy is energy
    exact = capped.exact
    assert exact.exact is exact


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 300.0, "beta": 1.0}, {"beta": 0.0}, {"beta": float("inf")}]
)
def test_target_refuses(options):
    with pytest.raises(ValueError, match="expected"):
        BoltzmannTarget(Harmonic(dim=1), **options)
