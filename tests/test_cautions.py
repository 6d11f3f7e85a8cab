"""Each caution where it is due, and not where it is not."""

import math

import numpy as np
import pytest
import torch

from pyrocg.arviz_compat import pareto_smooth
from pyrocg.bootstrap import Bootstrap
from pyrocg.cautions import Caution, of_components, of_model_bias, of_populations, of_weights
from pyrocg.estimates import Estimate
from pyrocg.estimators import WeightedSample
from pyrocg.observables import Observable
from pyrocg.weights import ess

EQUAL = torch.zeros(1000, dtype=torch.float64)


def codes(cautions):
    return [c.code for c in cautions]


def test_a_caution_reads_as_a_sentence():
    made = Caution("pareto_k", "Do not trust this.", "phi")
    assert f"{made}" == "Do not trust this."
    assert (made.code, made.observable) == ("pareto_k", "phi")
    assert made == Caution("pareto_k", "Do not trust this.", "phi")


def test_good_weights_need_none():
    log_w = 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert codes(of_weights(log_w, 0.69)) == []
    assert codes(of_weights(EQUAL, math.inf)) == []  # nearly equal: the tail does not matter


def test_a_heavy_tail():
    log_w = 0.5 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    (found,) = of_weights(log_w, 0.71)
    assert found.code == "pareto_k"
    assert str(found).startswith("Pareto k-hat is 0.710, above 0.7: corrected averages")


@pytest.mark.parametrize(("n", "few"), [(399, True), (401, False)])
def test_few_effective_samples(n, few):
    log_w = torch.cat([torch.zeros(n), torch.full((1000 - n,), -40.0)]).double()
    found = list(of_weights(log_w, 0.5))
    assert codes(found) == (["few_effective_samples"] if few else [])
    assert not few or f"is {n} of 1000" in str(found[0])


@pytest.mark.parametrize(("share", "dominant"), [(0.049, False), (0.051, True)])
def test_one_sample_with_much_of_the_weight(share, dominant):
    log_w = torch.cat([torch.tensor([math.log(99_999 * share / (1 - share))]), torch.zeros(99_999)])
    assert ("dominant_weight" in codes(of_weights(log_w.double(), 0.5))) == dominant


def test_samples_without_finite_energy():
    log_w = EQUAL.clone()
    log_w[:20] = -torch.inf
    (found,) = of_weights(log_w, 0.5)
    assert str(found) == "20 of 1000 samples (2 %) have no finite energy; they got weight 0"


def test_a_component_without_weight():
    component = np.arange(1000) % 3
    assert codes(of_components(component, EQUAL)) == []
    log_w = torch.where(torch.from_numpy(component == 1), -torch.inf, EQUAL)
    (found,) = of_components(component, log_w)
    assert str(found).startswith("component 2 has no weight: none of its 333 samples")


def test_a_component_with_a_heavy_tail():
    component = np.arange(6000) % 3
    log_w = -0.9 * torch.log(torch.rand(6000, generator=torch.Generator().manual_seed(0)).double())
    log_w = torch.where(torch.from_numpy(component == 1), log_w, torch.zeros_like(log_w))
    (found,) = of_components(component, log_w)
    assert found.code == "component_pareto_k"
    assert str(found).startswith("Pareto k-hat of component 2 is ")


def test_few_effective_samples_in_a_population():
    few, many, x = (np.zeros(1000) for _ in range(3))
    few[:49], many[:51], x[:] = 1.0, 1.0, np.linspace(0, 1, 1000)
    (found,) = of_populations({"few": few, "many": many, "x": x}, EQUAL)
    assert (found.code, found.observable) == ("few_in_population", "few")
    assert "few rests on 49 effective samples" in str(found)
    log_w = EQUAL.clone()
    log_w[0] = 10.0  # one of the 51 counts for nearly all
    assert [c.observable for c in of_populations({"many": many}, log_w)] == ["many"]
    (empty,) = of_populations({"empty": np.zeros(1000)}, EQUAL)
    assert "rests on 0 effective samples" in str(empty)


def averages(values, log_w, circular=False, seed=0):
    """Plain and corrected averages of one observable, on the same draws."""
    one = torch.zeros(len(values), dtype=torch.long)
    observable = Observable("x", "rad" if circular else "nm", len, circular=circular)
    found = []
    for weights in (torch.ones(len(values)), log_w.exp()):
        made = WeightedSample(Bootstrap(weights, one, 200, seed), 0.95, True)
        found.append({"x": made.means([observable], [values])[0]})
    return found


def tilted(n, tilt, seed):
    """Normal values, and log weights that move their mean by ``tilt``."""
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return x, tilt * x + 0.3 * noise


def test_a_model_whose_own_average_is_off():
    (found,) = of_model_bias(*averages(*tilted(2000, 0.3, seed=0)))
    assert (found.code, found.observable) == ("model_bias", "x")
    assert "differs from the corrected one by -0.283 nm, " in str(found)
    assert list(of_model_bias({}, {})) == []


def test_an_angle_that_is_off_across_the_cut():
    x, log_w = tilted(2000, 0.3, seed=0)
    wrapped = torch.remainder(0.3 * x + math.pi + 0.05 + math.pi, 2 * math.pi) - math.pi
    (found,) = of_model_bias(*averages(wrapped, log_w, circular=True))
    assert "by -0.0848 rad, " in str(found)


def test_a_good_model_is_called_biased_in_one_case_of_twenty():
    said = sum(
        len(list(of_model_bias(*averages(*tilted(300, 0.0, seed=7 * seed), seed=seed))))
        for seed in range(300)
    )
    assert 5 <= said <= 27


def test_the_error_of_a_difference_is_that_of_the_side_towards_zero():
    """Draws of the corrected average reach far up: a plain average above it may well be right."""
    up = np.concatenate([np.linspace(-0.1, 0.0, 500), np.linspace(0.0, 5.0, 500)])
    corrected = Estimate(0.0, (-0.1, 4.8), 0.95, "nm", 0.0, 0.1, 1.0, up)
    for mean, expected in ((1.0, []), (-1.0, ["model_bias"])):
        plain = Estimate(mean, (mean, mean), 0.95, "nm", 0.0, 0.1, 0.0, np.full(1000, mean))
        assert codes(of_model_bias({"x": plain}, {"x": corrected})) == expected


@pytest.mark.parametrize(("scale", "expected"), [(1e-6, []), (1e-4, ["component_pareto_k"])])
def test_a_few_large_weights_among_equal_ones_are_a_tail(scale, expected):
    """With an ESS above 95 % and a k-hat above 0.7 in both cases."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).double()
    log_w = torch.log1p(scale * uniform**-1.2)
    assert ess(log_w) > 0.95
    assert pareto_smooth(log_w.numpy())[1] > 0.7
    assert codes(of_components(np.zeros(20_000, dtype=np.int64), log_w)) == expected
