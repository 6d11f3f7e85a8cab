import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from toy_models import gaussian_model

from pyrocg.objectives import PathGradientELBO
from pyrocg.priors import (
    DistributionPrior,
    FlowPrior,
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


# FlowPrior


def flow(latent_dim, dtype=torch.float64, size=0.5):
    """A flow far from where it starts."""
    torch.manual_seed(3)
    prior = FlowPrior(latent_dim, n_couplings=3, hidden=(8,))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return prior.to(dtype)


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_flow_starts_at_the_standard_normal(latent_dim):
    z = 3 * torch.randn(50, latent_dim)
    expected = StandardNormalPrior(latent_dim)().log_prob(z)
    torch.testing.assert_close(FlowPrior(latent_dim)().log_prob(z), expected, atol=1e-5, rtol=1e-3)


def test_flow_density_integrates_to_one():
    line = torch.linspace(-9, 9, 60_001, dtype=torch.float64)[:, None]
    density = flow(1)().log_prob(line).exp()
    assert (density.sum() * 18 / 60_000).item() == pytest.approx(1.0, abs=1e-3)
    normal = StandardNormalPrior(1)().log_prob(line.float()).exp()
    assert (density - normal).abs().max() > 0.02
    axis = torch.linspace(-7, 7, 401, dtype=torch.float64)
    density = flow(2, size=0.3)().log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert (density.sum() * (14 / 400) ** 2).item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_flow_density_is_that_of_the_noise_over_the_jacobian(latent_dim):
    d = flow(latent_dim)()
    noise = torch.randn(latent_dim, dtype=torch.float64)

    def push(e):
        for part in d.transforms:
            e = part(e)
        return e

    jacobian = torch.autograd.functional.jacobian(push, noise)
    expected = d.base_dist.log_prob(noise) - torch.linalg.slogdet(jacobian).logabsdet
    z = push(noise)
    torch.testing.assert_close(d.log_prob(z), expected)
    torch.testing.assert_close(flow(latent_dim)().log_prob(z), expected)


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_flow_density_of_draws_is_that_of_the_inverse(latent_dim):
    prior = flow(latent_dim)
    d = prior()
    z = d.rsample((200,))
    torch.testing.assert_close(prior().log_prob(z), d.log_prob(z))


def test_flow_draws_follow_the_density():
    torch.manual_seed(0)
    d = flow(1)()
    with torch.no_grad():
        z = d.sample((200_000,))[:, 0]
        line = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
        cumulative = d.log_prob(line[:, None]).exp().cumsum(0) * 18 / 20_000
    empirical = torch.searchsorted(z.sort().values, line) / len(z)
    assert (empirical - cumulative).abs().max() < 5e-3


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_flow_in_a_plate_with_validation_and_gradients(latent_dim):
    prior = flow(latent_dim)

    def program():
        with pyro.plate("samples", 6):
            return pyro.sample("z", prior())

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["fn"].has_rsample
    assert (site["value"].shape, site["log_prob"].shape) == ((6, latent_dim), (6,))
    site["value"].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())


def test_flow_is_a_module_that_copies_saves_and_changes_dtype():
    prior = flow(2)
    prior().rsample((5,))  # leaves nothing behind
    z = torch.randn(4, 2, dtype=torch.float64)
    expected = prior().log_prob(z)
    loaded = FlowPrior(2, 3, (8,)).double()
    loaded.load_state_dict(prior.state_dict())
    for same in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior)), loaded):
        torch.testing.assert_close(same().log_prob(z), expected)
    assert prior.float()().sample((3,)).dtype == torch.float32
    torch.testing.assert_close(prior().log_prob(z.float()), expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("loss", [Trace_ELBO, PathGradientELBO])
def test_flow_trains_in_a_model_of_the_double_well(loss, latent_dim):
    torch.manual_seed(0)
    cg = gaussian_model(FlowPrior(latent_dim, 2, (8,)), latent_dim, hidden=(32,))
    before = {name: p.clone() for name, p in cg.prior.named_parameters()}
    elbo = loss()(cg.model, cg.guide)
    adam = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        adam.zero_grad()
        value = elbo(128) / 128
        value.backward()
        adam.step()
        losses.append(value.item())
    assert sum(losses[-20:]) / 20 < sum(losses[:5]) / 5 - 5
    assert all(not torch.equal(before[name], p) for name, p in cg.prior.named_parameters())
    log_w = cg.sample(20_000).log_weights
    assert log_w.mean() < cg.target.energy.log_z() + 4 * log_w.std() / math.sqrt(20_000)


def test_path_gradients_of_a_flow_are_unbiased():
    torch.manual_seed(0)
    cg = gaussian_model(flow(2, size=0.2), 2).double()
    cg.prior.load_state_dict(flow(2, size=0.2).state_dict())
    parameters = list(cg.prior.parameters())
    path, plain = (
        torch.cat([g.flatten() for g in torch.autograd.grad(elbo(200_000), parameters)])
        for elbo in (loss()(cg.model, cg.guide) for loss in (PathGradientELBO, Trace_ELBO))
    )
    assert ((path - plain).norm() / plain.norm()).item() < 0.03


# DistributionPrior


FIXED = {
    "normal": lambda: dist.Normal(torch.zeros(2), 1.5).to_event(1),
    "mixture": lambda: dist.MixtureOfDiagNormals(torch.eye(2), torch.ones(2, 2), torch.zeros(2)),
    "mixture, same family": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3)), dist.Normal(torch.randn(3, 2), 0.5).to_event(1)
    ),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        [
            dist.transforms.AffineTransform(torch.ones(2), 2.0),
            dist.transforms.ExpTransform().inv.inv,
        ],
    ),
    "inverse": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        [dist.transforms.AffineTransform(torch.ones(2), torch.full((2,), 2.0)).inv],
    ),
    "full covariance": lambda: dist.MultivariateNormal(torch.zeros(2), 2 * torch.eye(2)),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_distribution_follows_the_module(name):
    torch.manual_seed(0)
    distribution = FIXED[name]()
    prior = DistributionPrior(distribution)
    z = distribution.sample((5,))
    expected = distribution.log_prob(z)
    prior.double()
    assert prior().sample().dtype == torch.float64
    torch.testing.assert_close(prior().log_prob(z.double()).float(), expected)
    assert distribution.sample().dtype == torch.float32
    prior.to("meta")
    assert prior().sample().device.type == "meta"


def test_a_fixed_distribution_in_a_model_of_double_precision():
    cg = gaussian_model(FIXED["normal"](), latent_dim=2).double()
    assert cg.sample(5).latents["z"].dtype == torch.float64


def test_distribution_prior_refuses_what_it_would_not_train():
    loc = torch.zeros(2, requires_grad=True)
    spline = dist.transforms.Spline(2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    for learned in (
        dist.Normal(loc, 1.0).to_event(1),
        dist.Normal(torch.zeros(2), (2 * loc).exp()).to_event(1),
        dist.TransformedDistribution(base, [spline]),
    ):
        with pytest.raises(ValueError, match="write a module whose call returns"):
            DistributionPrior(learned)


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


@pytest.mark.parametrize(
    "shares", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]]
)
def test_set_shares_refuses(shares):
    prior = StratifiedPrior(2, StandardNormalPrior(1))
    with pytest.raises(ValueError, match="expected 2 positive, finite shares"):
        prior.set_shares(torch.tensor(shares))
    assert prior.shares.tolist() == [0.5, 0.5]
