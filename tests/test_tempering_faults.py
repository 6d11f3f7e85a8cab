import math

import pytest
import torch
from pyro.infer import Trace_ELBO
from toy_models import gaussian_model

from pyrocg.energies.toy import DoubleWell
from pyrocg.tempering import AdaptiveSchedule, LinearSchedule, WeightedEnergies
from pyrocg.tempering_faults import expected_log_z, find_tempering_faults
from pyrocg.weights import ess, log_mean_exp

N = 1000


def course(t, log_z=None, kl=None, ess=0.9, promised=None):
    """A history with log Z where it is expected, unless told otherwise."""
    n = len(t)
    log_z = log_z or [0.0] * n
    kl = kl or [0.1] * n
    return {
        "step": [100 * (i + 1) for i in range(n)],
        "t": list(t),
        "log_z": log_z,
        "elbo": [a - b for a, b in zip(log_z, kl, strict=True)],
        "ess": [ess] * n,
        "next_log_z": promised or log_z,
        "next_error": [0.0] * n,
    }


def codes(history, schedule=None):
    rule = schedule or AdaptiveSchedule(start=0.1, min_step=1e-3, max_step=0.1)
    return [(f.code, f.step) for f in find_tempering_faults(history, rule, N)]


def test_a_smooth_course_has_no_faults():
    assert codes(course([0.1, 0.2, 0.3, 0.35, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])) == []


def test_smallest_steps_in_a_row_are_a_stall():
    t = [0.1 + 0.001 * i for i in range(8)]
    assert codes(course(t)) == [("stall", 600)]
    assert codes(course([*t[:5], 0.2, 0.201, 0.202])) == []
    assert codes(course(t), LinearSchedule(0.1)) == []  # that is how it was asked to be


def test_a_jump_to_one_is_forced():
    assert codes(course([0.1, 0.2, 1.0, 1.0])) == [("forced", 300)]
    assert codes(course([0.1, 0.2, 1.0, 1.0]), AdaptiveSchedule(0.1, max_step=0.8)) == []
    (fault,) = find_tempering_faults(course([0.1, 0.2, 1.0]), AdaptiveSchedule(0.1), N)
    assert str(fault).startswith("t was forced from 0.2 to 1 by step 300")


def test_a_divergence_that_stays_high_after_a_step_is_an_overshoot():
    t = [0.1, 0.2, *[0.2] * 8]
    assert codes(course(t, kl=[0.5, *[3.0] * 9])) == [("overshoot", 200)]
    assert codes(course(t, kl=[0.5, 3.0, 2.5, 1.0, *[0.5] * 6])) == []  # the model followed
    assert codes(course(t, kl=[0.5, *[1.4] * 9])) == []  # small
    assert codes(course([0.2] * 10, kl=[0.5, *[3.0] * 9])) == []  # t did not move


def test_lost_weight_is_a_collapse():
    t = [0.5] * 8
    lost = [*[0.0] * 4, *[-0.7] * 4]
    assert codes(course(t, log_z=lost)) == [("collapse", 500)]
    assert codes(course(t, log_z=[-v for v in lost])) == []
    assert codes(course(t, log_z=lost, ess=0.01)) == []  # noise
    assert codes(course(t, log_z=[0.0, 0.0, 0.0, 0.0, -0.7, 0.0, 0.0, 0.0])) == []  # an outlier
    assert codes(course(t, log_z=[0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0])) == []
    slow = [-0.03 * i for i in range(8)]
    assert codes(course(t, log_z=slow)) == [("collapse", 600)]


def test_log_z_that_falls_with_t_as_expected_is_none():
    t = [0.1 * (i + 1) for i in range(10)]
    log_z = [-20 * x for x in t]
    assert codes(course(t, log_z=log_z, promised=[*log_z[1:], math.nan])) == []
    lost = [v - 0.7 * (i > 5) for i, v in enumerate(log_z)]
    promised = [*(lost[i] + log_z[i + 1] - log_z[i] for i in range(9)), math.nan]
    assert codes(course(t, log_z=lost, promised=promised)) == [("collapse", 700)]
    nothing = course(t, log_z=lost, promised=[math.nan] * 10)
    assert codes(nothing) == []


def test_noise_is_no_collapse():
    """Estimates with the errors of their ESS, over 400 courses."""
    generator = torch.Generator().manual_seed(0)
    t = [min(1.0, 0.05 * (i + 1)) for i in range(40)]
    found = 0
    for _ in range(400):
        fraction = 0.3
        error = math.sqrt((1 / fraction - 1) / N)
        log_z = (error * torch.randn(40, generator=generator, dtype=torch.float64)).tolist()
        found += codes(course(t, log_z=log_z, ess=fraction)) != []
    assert found == 0


def test_expected_log_z_is_that_of_a_normal_density():
    """Z_t = sqrt(2π/t) of exp(-t x²/2)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, generator=generator, dtype=torch.float64) / math.sqrt(0.4)
    samples = WeightedEnergies(0.5 * x.square(), torch.zeros_like(x))
    found, error = expected_log_z(samples, 0.5 * math.log(2 * math.pi / 0.4), 0.3)
    assert found == pytest.approx(0.5 * math.log(2 * math.pi / 0.7), abs=4 * error)
    # of the mean of v = exp(-Δ x²/2), whose moments are normal integrals too
    relative = (0.4 + 0.3) / math.sqrt(0.4 * (0.4 + 0.6)) - 1
    assert error == pytest.approx(math.sqrt(relative / 100_000), rel=0.02)
    energy = torch.tensor([1.0, math.inf, 1.0])
    log_w = torch.tensor([0.0, 0.0, -math.inf])
    assert expected_log_z(WeightedEnergies(energy, log_w), 0.0, 0.5) == (-0.5, 0.0)
    nothing = expected_log_z(WeightedEnergies(energy[1:], log_w[1:]), 0.0, 0.5)
    assert all(math.isnan(value) for value in nothing)


def tempered(schedule, tilt, steps=500, every=20):
    """Train one Gaussian at rising t, which keeps one of the two wells, and evaluate."""
    torch.manual_seed(0)
    cg = gaussian_model(energy=DoubleWell(c=tilt), hidden=())
    elbo = Trace_ELBO()(cg.model, cg.guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.02)
    columns = ("step", "t", "log_z", "elbo", "ess", "next_log_z", "next_error")
    history = {column: [] for column in columns}
    cg.temper = schedule.start
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (elbo(64) / 64).backward()
        optimizer.step()
        if step % every == 0:
            samples = cg.sample(2000)
            log_w, t = samples.log_weights.double(), cg.temper
            weighted = WeightedEnergies(samples.reduced_energy, log_w)
            log_z = float(log_mean_exp(log_w))
            cg.temper = schedule.next(t, step / steps, weighted)
            promised = expected_log_z(weighted, log_z, cg.temper - t)
            row = (step, t, log_z, float(log_w.mean()), float(ess(log_w)), *promised)
            for column, value in zip(columns, row, strict=True):
                history[column].append(value)
    return history


def test_the_lost_half_of_a_symmetric_double_well_is_reported():
    schedule = LinearSchedule(start=0.02, until=0.8)
    history = tempered(schedule, tilt=0.0)
    assert history["log_z"][-1] < DoubleWell(c=0.0).log_z() - 0.5
    faults = find_tempering_faults(history, schedule, 2000)
    assert "collapse" in [f.code for f in faults]


def test_a_single_well_is_kept_without_fault():
    schedule = LinearSchedule(start=0.02, until=0.8)
    history = tempered(schedule, tilt=8.0)
    assert history["log_z"][-1] == pytest.approx(DoubleWell(c=8.0).log_z(), abs=0.05)
    assert find_tempering_faults(history, schedule, 2000) == ()
