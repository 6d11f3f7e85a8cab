import math

import pytest
import torch
from extended_models import poor_model
from toy_models import gaussian_model, solved_model

from pyrocg.bridges import Bridge, _evened, find_bridge
from pyrocg.energies.toy import DoubleWell
from pyrocg.frames import Scales
from pyrocg.tempering import conditional_ess


def test_steps_have_the_conditional_ess_that_was_asked_for():
    """On new particles, the first and hardest step; more is asked, more levels there are."""
    cg = poor_model()
    levels = []
    for least in (0.8, 0.95, 0.99):
        bridge = find_bridge(cg, min_ess=least, pilot=2000)
        torch.manual_seed(5)
        log_w = cg.sample(20_000).joint_log_weights
        found = conditional_ess(-log_w, torch.zeros(20_000).double(), bridge.levels[0])
        assert found > least - 0.3 * (1 - least)
        levels.append(len(bridge.levels))
    assert levels == sorted(set(levels))


def test_angles_follow_the_acceptance():
    angles = [
        find_bridge(poor_model(), min_ess=0.9, acceptance=target, pilot=300).angles[-1]
        for target in (0.99, 0.9, 0.8)
    ]
    assert angles == sorted(set(angles))


def test_an_exact_generator_needs_no_level():
    bridge = find_bridge(solved_model(), pilot=100)
    assert (bridge.levels, bridge.angles) == ((1.0,), ())
    assert bridge.energy_calls == 100
    assert bridge.calls_per_sample == 1


def test_energy_calls_are_counted():
    cg = poor_model()
    before = cg.target.energy.calls
    bridge = find_bridge(cg, min_ess=0.95, leapfrog=2, pilot=50)
    assert bridge.energy_calls == cg.target.energy.calls - before
    n = len(bridge.angles)
    assert bridge.calls_per_sample == 1 + 2 * n
    assert bridge.energy_calls <= 50 * (1 + 2 * (5 + 2 * (n - 1)))


def test_a_bridge_is_reproducible_and_leaves_everything_as_it_was():
    cg = poor_model()
    cg.temper = 0.5
    torch.manual_seed(3)
    first, other = find_bridge(cg, pilot=50, seed=1), find_bridge(cg, pilot=50, seed=2)
    after = torch.rand(())
    torch.manual_seed(3)
    assert after == torch.rand(())
    again = find_bridge(cg, pilot=50, seed=1)
    assert (first.levels, first.angles) == (again.levels, again.angles)
    assert first.levels != other.levels
    assert cg.temper == 0.5


def test_steps_are_evened_out():
    levels, angles = _evened([0.0, 0.4, 0.8], [9.0, 0.5, 0.7], last=0.5)
    first, second = 0.4 * 2.5 / 3, 0.4 * 5 / 3  # 2.5 steps of 0.4 in three
    assert levels == pytest.approx((first, second, 1.0))
    assert angles == pytest.approx((0.5, 0.5 + 0.2 * (second - 0.4) / 0.4))
    assert _evened([0.0], [9.0], last=0.3) == ((1.0,), ())


def test_weights_without_any_finite_energy_are_refused():
    class Nowhere(DoubleWell):
        def _energy(self, x):
            return x[:, 0] + math.inf

    with pytest.raises(ValueError, match="expected particles with finite energies, got none of 30"):
        find_bridge(gaussian_model(energy=Nowhere()), pilot=30)


def test_arguments_out_of_range_are_refused():
    cg = solved_model()
    for wrong in ({"min_ess": 1.0}, {"acceptance": 0.0}, {"leapfrog": 0}, {"pilot": 0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"expected {name}"):
            find_bridge(cg, **wrong)
    scales = Scales.of_generator(cg)
    for levels in ((), (0.5,), (0.5, 0.4, 1.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match="expected levels that rise"):
            Bridge(levels, (0.5,) * max(0, len(levels) - 1), 1, scales)
    for angles in ((), (0.0,), (4.0,), (0.5, 0.5)):
        with pytest.raises(ValueError, match="expected an angle in"):
            Bridge((0.5, 1.0), angles, 1, scales)
    with pytest.raises(ValueError, match="expected leapfrog"):
        Bridge((1.0,), (), 0, scales)
