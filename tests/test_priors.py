import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam

from pyrocg.priors import (
    DistributionPrior,
    GaussianMixturePrior,
    PriorProgram,
    StandardNormalPrior,
    StratifiedPrior,
    TorusPrior,
    as_prior,
)


def test_standard_normal():
    z = torch.randn(5, 3)
    expected = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(StandardNormalPrior(3)().log_prob(z), expected)


def test_torus_is_uniform():
    d = TorusPrior(2)()
    assert d.event_shape == (2,)
    assert d.log_prob(torch.tensor([3.0, -3.0])).item() == pytest.approx(-2 * math.log(2 * math.pi))
    assert bool((d.sample((100,)).abs() <= math.pi).all())


def test_gaussian_mixture_is_the_formula_and_learns():
    torch.manual_seed(0)
    prior, z = GaussianMixturePrior(2, 3), torch.randn(4, 2)
    parts = dist.Normal(prior.loc, prior.log_scale.exp()).to_event(1).log_prob(z[:, None])
    expected = torch.logsumexp(prior.logits.log_softmax(0) + parts, -1)
    torch.testing.assert_close(prior().log_prob(z), expected)
    with pyro.plate("samples", 50):
        prior().expand([50]).rsample().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())


def test_distribution_prior_wants_an_event_and_no_batch():
    assert DistributionPrior(dist.Normal(torch.zeros(2), 1.0).to_event(1))().event_shape == (2,)
    for wrong in (
        dist.Normal(torch.zeros(2), 1.0),
        dist.Normal(torch.zeros(2, 2), 1.0).to_event(1),
    ):
        with pytest.raises(ValueError, match=r"declare dimensions with .to_event\(1\)"):
            DistributionPrior(wrong)


def test_as_prior_tells_modules_distributions_and_programs_apart():
    module = StandardNormalPrior(1)
    assert as_prior(module) is module
    assert isinstance(as_prior(dist.Normal(torch.zeros(1), 1.0).to_event(1)), DistributionPrior)
    assert isinstance(as_prior(lambda: None), PriorProgram)
    with pytest.raises(TypeError, match="expected a prior module, a Pyro distribution or a Pyro"):
        as_prior(3.0)


def test_as_prior_keeps_the_parameters_of_a_pyro_module():
    class Learned(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

        def forward(self):
            return dist.Normal(torch.zeros(2), self.scale).to_event(1)

    prior = as_prior(Learned())
    assert isinstance(prior, PriorProgram)
    assert len(list(prior.parameters())) == 1


def test_stratified_prior_draws_both_sites_in_equal_shares():
    prior = StratifiedPrior(4, StandardNormalPrior(2))

    def program():
        with pyro.plate("samples", 100):
            return prior()

    trace = poutine.trace(program).get_trace()
    z, component = trace.nodes["_RETURN"]["value"]
    assert z.shape == (100, 2)
    assert torch.bincount(component).tolist() == [25] * 4


def test_set_shares_normalises_and_is_saved():
    prior = StratifiedPrior(2, StandardNormalPrior(1))
    prior.set_shares(torch.tensor([1.0, 3.0]))
    assert prior.shares.tolist() == [0.25, 0.75]
    assert "shares" in prior.state_dict()


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_set_shares_refuses(shares):
    prior = StratifiedPrior(2, StandardNormalPrior(1))
    with pytest.raises(ValueError, match="expected 2 positive shares"):
        prior.set_shares(torch.tensor(shares))
    assert prior.shares.tolist() == [0.5, 0.5]
