import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

from pyrocg.decoders import CouplingDecoder
from pyrocg.distributions import (
    MixedNormal,
    MoebiusNormal,
    StratifiedCategorical,
    WrappedNormal,
    wrapped_normal_log_prob,
)
from pyrocg.entropies import expected_log_prob, wrapped_normal_entropy


@pytest.mark.parametrize("scale", [0.05, 0.3, 0.499, 0.501, 0.8, 1.6, 3.0, 4.0])
def test_wrapped_normal_entropy_is_the_integral(scale):
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1]
    sigma = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    log_p = wrapped_normal_log_prob(grid, torch.zeros_like(grid), sigma.expand_as(grid))
    integral = -(log_p.exp() * log_p).mean() * 2 * math.pi
    found = wrapped_normal_entropy(sigma)
    assert found.item() == pytest.approx(integral.item(), abs=3e-7)
    (slope,) = torch.autograd.grad(found, sigma)
    (expected,) = torch.autograd.grad(integral, sigma)
    assert slope.item() == pytest.approx(expected.item(), abs=1e-5)


def test_wrapped_normal_entropy_in_single_precision():
    scale = torch.linspace(0.05, 4.0, 80)
    found, exact = wrapped_normal_entropy(scale), wrapped_normal_entropy(scale.double())
    torch.testing.assert_close(found.double(), exact, atol=3e-6, rtol=0)


def couplings():
    torch.manual_seed(1)
    decoder = CouplingDecoder(torch.tensor([True, False, True, False, False]), 2, 3, 2, (8,))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder.double()(torch.randn(6, 2).double(), torch.arange(6) % 3)


def several():
    torch.manual_seed(0)
    loc, scale = torch.randn(6, 2).double(), (0.5 * torch.randn(6, 2).double()).exp()
    omega = torch.tensor([0.5, -0.3]).double().expand(6, 2, 2)
    flow = dist.TransformedDistribution(
        dist.Normal(loc, scale).to_event(1),
        [transforms.AffineTransform(1.0, 2.0), transforms.TanhTransform()],
    )
    return {
        "normal": dist.Normal(loc, scale).to_event(1),
        "correlated": dist.MultivariateNormal(loc, torch.eye(2).double() + 0.5),
        "wrapped": WrappedNormal(loc, scale).to_event(1),
        "Moebius": MoebiusNormal(loc, scale, omega).to_event(1),
        "mixed": MixedNormal(loc, scale, torch.tensor([True, False])),
        "couplings": couplings(),
        "flow": flow,
    }


@pytest.mark.parametrize("name", several())
def test_the_mean_is_that_of_the_log_density(name):
    """And every value is closer to it, or is it."""
    fn = several()[name]
    n = 20_000
    values = fn.expand([n, 6]).rsample()
    log_prob = fn.expand([n, 6]).log_prob(values)
    found = expected_log_prob(fn.expand([n, 6]), values, log_prob)
    found = found.expand(n, 6)
    error = ((log_prob - found).std(0) / math.sqrt(n)).clamp(min=1e-12)
    assert ((log_prob - found).mean(0).abs() / error).max() < 4
    if name not in ("couplings", "flow", "Moebius"):
        assert found.std(0).max() < 1e-9


def test_the_noise_of_couplings_is_found_at_the_sample_and_its_density():
    """For one sample, log q - [log density of the noise] + [its expectation]."""
    fn = couplings()
    torch.manual_seed(3)
    value = fn.rsample()
    torch.manual_seed(3)
    torch.randn(6, 2, dtype=torch.float64)  # of the torsions
    noise = torch.randn(6, 3, dtype=torch.float64)
    ((torsions, tau),) = fn.torsions(value)
    assert torch.equal(tau, value[:, [0, 2]])
    change = expected_log_prob(torsions, tau, torsions.log_prob(tau)) - torsions.log_prob(tau)
    expected = fn.log_prob(value) + change.sum(-1) + 0.5 * (noise.square() - 1).sum(-1)
    torch.testing.assert_close(expected_log_prob(fn, value, fn.log_prob(value)), expected)


def test_stratified_components():
    fn = StratifiedCategorical(torch.tensor([0.25, 0.75])).expand([8])
    value = fn.sample()
    found = expected_log_prob(fn, value, fn.log_prob(value))
    entropy = 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    torch.testing.assert_close(found, torch.full((8,), entropy))
    torch.testing.assert_close(fn.log_prob(value).mean(), found.mean())  # exact shares


def test_a_distribution_without_closed_form_is_refused():
    fn = dist.VonMises(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="closed form, got VonMises; use Trace_ELBO"):
        expected_log_prob(fn, torch.zeros(3), torch.zeros(3))
