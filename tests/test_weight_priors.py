import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from scipy import integrate, stats
from torch import nn
from toy_models import gaussian_model, solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import Harmonic
from pyrocg.losses import WeightPriorELBO
from pyrocg.objectives import PathGradientELBO
from pyrocg.priors import StandardNormalPrior
from pyrocg.target import BoltzmannTarget
from pyrocg.training import fit
from pyrocg.weight_priors import (
    ARDWeightPrior,
    GaussianWeightPrior,
    count_switched_off,
    log_prior,
    prior_precision,
    select,
)

WEIGHTS = {
    "layer.weight": torch.tensor([[0.3, -1.2, 0.0], [2.0, 0.01, 0.5]], dtype=torch.float64),
    "layer.bias": torch.tensor([0.4, -0.1], dtype=torch.float64),
}
PRIORS = {
    "gaussian": GaussianWeightPrior(0.7),
    "ard": ARDWeightPrior(1.5, 0.7),
    "ard of units": ARDWeightPrior(1.5, 0.7, per="unit"),
    "ard of the paper": ARDWeightPrior(),
}


def leaves():
    return {name: p.clone().requires_grad_() for name, p in WEIGHTS.items()}


# Densities


def test_gaussian_density():
    expected = sum(dist.Normal(0.0, 0.7).log_prob(p).sum() for p in WEIGHTS.values())
    torch.testing.assert_close(PRIORS["gaussian"](WEIGHTS), expected)


def test_ard_density_is_student_t():
    a0, b0 = 1.5, 0.7
    flat = torch.cat([p.flatten() for p in WEIGHTS.values()]).numpy()
    expected = stats.t(df=2 * a0, scale=math.sqrt(b0 / a0)).logpdf(flat).sum()
    assert float(PRIORS["ard"](WEIGHTS)) == pytest.approx(expected, rel=1e-10)


def group_integral(group, a0, b0, power=0):
    """Integral over the precision, by quadrature."""
    gamma = stats.gamma(a0, scale=1 / b0)

    def integrand(tau):
        return tau**power * stats.norm(0, tau**-0.5).pdf(group).prod() * gamma.pdf(tau)

    return integrate.quad(integrand, 0, 200, limit=500)[0]


def groups_of_units():
    columns = [WEIGHTS["layer.weight"][:, j].numpy() for j in range(3)]
    return columns + [WEIGHTS["layer.bias"][i : i + 1].numpy() for i in range(2)]


def test_ard_density_of_units_is_the_integral_over_their_precisions():
    expected = sum(math.log(group_integral(g, 1.5, 0.7)) for g in groups_of_units())
    assert float(PRIORS["ard of units"](WEIGHTS)) == pytest.approx(expected, rel=1e-6)


def test_ard_precision_is_the_expected_one():
    a0, b0 = 1.5, 0.7
    expected = [
        group_integral(g, a0, b0, power=1) / group_integral(g, a0, b0) for g in groups_of_units()
    ]
    got = PRIORS["ard of units"].precision(WEIGHTS)
    assert got["layer.weight"][0].tolist() == pytest.approx(expected[:3], rel=1e-6)
    assert torch.equal(got["layer.weight"][0], got["layer.weight"][1])
    assert got["layer.bias"].tolist() == pytest.approx(expected[3:], rel=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_density_and_expectation_maximisation_have_the_same_gradient(name):
    """d/dθ of minus E[τ] θ²/2 with E[τ] held fixed, as in the paper."""
    prior, exact, em = PRIORS[name], leaves(), leaves()
    prior(exact).backward()
    precision = prior.precision(em)
    sum((-0.5 * precision[n] * p.square()).sum() for n, p in em.items()).backward()
    for name in WEIGHTS:
        torch.testing.assert_close(exact[name].grad, em[name].grad)


@pytest.mark.parametrize("name", PRIORS)
def test_larger_weights_are_less_probable(name):
    values = [float(PRIORS[name]({n: f * p for n, p in WEIGHTS.items()})) for f in (0.5, 1, 2, 8)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


def test_only_some_parameters():
    biases = {"layer.bias": WEIGHTS["layer.bias"]}
    for make in (GaussianWeightPrior, ARDWeightPrior):
        prior = make(only=("*.bias",))
        torch.testing.assert_close(prior(WEIGHTS), make()(biases))
        assert prior.precision(WEIGHTS)["layer.weight"].abs().max() == 0
        assert bool((prior.precision(WEIGHTS)["layer.bias"] > 0).all())
    assert list(select(WEIGHTS, "*.bias")) == ["layer.bias"]
    with pytest.raises(ValueError, match=r"got 'wieght', which matches none of layer\.weight"):
        GaussianWeightPrior(only=("wieght",))(WEIGHTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianWeightPrior(0.0), "expected a scale above 0"),
        (lambda: GaussianWeightPrior(math.inf), "expected a scale above 0"),
        (lambda: ARDWeightPrior(a0=0.0), "expected a0 and b0 above 0"),
        (lambda: ARDWeightPrior(per="layer"), 'expected per "weight" or "unit"'),
        (lambda: WeightPriorELBO(Trace_ELBO(), GaussianWeightPrior(), 0.0), "expected a gibbs_sc"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_count_switched_off():
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[9e-5, -9e-5, 1.1e-4], [0.0, 1.0, -1.0]]))
        linear.bias.fill_(1.0)
    assert count_switched_off(linear) == (3, 8)
    assert count_switched_off(linear, threshold=1e-3) == (4, 8)


# The user's own


def test_precision_of_a_users_prior():
    tau = {"layer.weight": 3.0, "layer.bias": 0.5}

    def independent(parameters):
        return sum((-0.25 * tau[n] * p**4).sum() for n, p in parameters.items())

    got = prior_precision(independent, WEIGHTS, probes=1)
    for name, p in WEIGHTS.items():
        torch.testing.assert_close(got[name], 3 * tau[name] * p.square())

    def correlated(parameters):
        return -0.5 * parameters["layer.bias"].sum().square()

    got = prior_precision(correlated, WEIGHTS, probes=4000)
    torch.testing.assert_close(got["layer.bias"], torch.ones(2).double(), atol=0.1, rtol=0)
    assert got["layer.weight"].abs().max() == 0
    laplace = prior_precision(lambda p: -p["layer.bias"].abs().sum(), WEIGHTS)
    assert all(t.abs().max() == 0 for t in laplace.values())


def test_precision_of_the_built_in_gaussian_agrees_with_its_hessian():
    prior = PRIORS["gaussian"]
    numerical = prior_precision(lambda p: prior(p), WEIGHTS)
    for name, tau in prior_precision(prior, WEIGHTS).items():
        torch.testing.assert_close(numerical[name], tau)


def test_what_a_users_prior_returns_is_checked():
    with pytest.raises(TypeError, match="expected a weight prior that returns a tensor, got float"):
        log_prior(lambda parameters: 0.0, WEIGHTS)
    with pytest.raises(ValueError, match=r"a scalar, got shape \(2,\)"):
        log_prior(lambda parameters: parameters["layer.bias"], WEIGHTS)


# In the objective


def test_scale_and_sign_in_the_loss_and_its_gradient():
    torch.manual_seed(0)
    cg, prior, n, scale = gaussian_model().double(), ARDWeightPrior(), 32, 200.0
    parameters = list(cg.decoder.parameters())
    gradients = []
    for loss in (PathGradientELBO(), WeightPriorELBO(PathGradientELBO(), prior, scale)):
        torch.manual_seed(1)
        value = loss(cg.model, cg.guide)(n) / n
        gradients.append((value, *torch.autograd.grad(value, parameters)))
    log_p = prior(dict(cg.decoder.named_parameters()))
    expected = (-log_p / scale, *torch.autograd.grad(-log_p / scale, parameters))
    for plain, with_prior, penalty in zip(*gradients, expected, strict=True):
        torch.testing.assert_close(with_prior - plain, penalty)


@pytest.mark.parametrize(
    "base",
    [Trace_ELBO(), PathGradientELBO(), RenyiELBO(num_particles=4)],
    ids=lambda base: type(base).__name__,
)
def test_every_way_to_the_loss_agrees(base):
    torch.manual_seed(0)
    cg = gaussian_model().double()
    loss = WeightPriorELBO(base, GaussianWeightPrior(0.5), 100.0)
    torch.manual_seed(1)
    expected = base.loss(cg.model, cg.guide, 8)
    log_p = GaussianWeightPrior(0.5)(dict(cg.decoder.named_parameters()))
    expected -= 8 / 100.0 * float(log_p.detach())
    torch.manual_seed(1)
    assert loss.loss(cg.model, cg.guide, 8) == pytest.approx(expected)
    torch.manual_seed(1)
    assert loss.loss_and_grads(cg.model, cg.guide, 8) == pytest.approx(expected)


def shift_model(stiffness=2.0, mean=1.5):
    """q(u|z) = N(b, σ²) with b alone to be learned: KL = stiffness (b - mean)²/2 + constant."""
    target = BoltzmannTarget(Harmonic(1, stiffness, mean), beta=1.0)
    coordinates = IdentityCoordinates(1)
    decoder = GaussianDecoder(coordinates.circular, 1, (), (), variance="constant")
    encoder = GaussianEncoder(coordinates.circular, 1, (), (), variance="constant")
    cg = CoarseGrainedModel(target, coordinates, StandardNormalPrior(1), decoder, encoder)
    cg.requires_grad_(False)
    encoder.mean.layers[0].weight.zero_()
    decoder.mean.layers[0].weight.zero_()
    decoder.mean.layers[0].bias.zero_().requires_grad_()
    return cg.double(), decoder.mean.layers[0].bias


@pytest.mark.parametrize("plain_pyro", [False, True])
def test_the_mode_of_the_gibbs_posterior_is_found(plain_pyro):
    """Minimum of N k (b - m)²/2 + b²/(2 s²): b = m k N / (k N + s⁻²)."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    cg, bias = shift_model()
    prior, scale = GaussianWeightPrior(0.5, only="mean.layers.0.bias"), 3.0
    if plain_pyro:
        optimizer = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.99}
        )
        loss = WeightPriorELBO(Trace_ELBO(), prior, scale)
        svi = SVI(cg.model, cg.guide, optimizer, loss)
        for _ in range(400):
            svi.step(512)
            optimizer.step()
    else:
        options = {"learning_rate": 0.05, "progress": False, "evaluate_every": 1000}
        fit(cg, 300, 512, weight_prior=prior, gibbs_scale=scale, **options)
    expected = 1.5 * 2.0 * scale / (2.0 * scale + 0.5**-2)  # 0.9, half way from 0 to the mean
    assert float(bias.detach()) == pytest.approx(expected, abs=0.02)


def test_guides_without_decoder_and_priors_with_parameters_are_refused():
    loss = WeightPriorELBO(Trace_ELBO(), GaussianWeightPrior(), 10.0)
    with pytest.raises(TypeError, match="expected a guide with a module `decoder`, got Linear"):
        loss._penalty(nn.Linear(1, 1), 4)

    class Learned(nn.Linear):
        def forward(self, parameters):
            return self.bias.sum()

    with pytest.raises(ValueError, match="without parameters of its own, got a Learned"):
        WeightPriorELBO(Trace_ELBO(), Learned(1, 1), 10.0)


def users_prior(parameters):
    return -sum(p.abs().sum() for p in parameters.values())


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (users_prior, "users_prior"),
        (GaussianWeightPrior(2.0), "GaussianWeightPrior(scale=2.0, only=('*',))"),
    ],
)
def test_what_checkpoints_record(prior, expected):
    recorded = WeightPriorELBO(Trace_ELBO(), prior, 10).settings()
    assert recorded == {"weight_prior": expected, "gibbs_scale": 10.0}


@pytest.mark.filterwarnings("ignore:the encoder learned almost nothing")
def test_ard_switches_off_a_latent_variable_that_is_not_needed():
    """A target with one factor, a linear decoder with two latent variables."""
    torch.manual_seed(0)
    target, coordinates = solved_model().target, IdentityCoordinates(2)
    decoder = GaussianDecoder(coordinates.circular, 2, (), (), variance="constant")
    encoder = GaussianEncoder(coordinates.circular, 2, (), (), variance="constant")
    cg = CoarseGrainedModel(target, coordinates, StandardNormalPrior(2), decoder, encoder)
    prior = ARDWeightPrior(per="unit", only="mean.layers.0.weight")
    fit(cg, 500, 64, learning_rate=2e-2, weight_prior=prior, gibbs_scale=500.0, progress=False)
    columns = decoder.mean.layers[0].weight.norm(dim=0)
    assert columns.min() < 1e-2 < 0.3 < columns.max()


# Weights as Pyro's own random variables


SHIFT_PRIOR = dist.Normal(torch.zeros(1), 0.5).to_event(1)


class RandomShift(PyroModule):
    """u | z ~ N(b, 1/2), with a random b."""

    def __init__(self):
        super().__init__()
        self.shift = PyroSample(SHIFT_PRIOR)
        self.register_buffer("scale", torch.tensor([0.5**0.5]))

    def forward(self, z):
        return dist.Normal(self.shift + 0.0 * z, self.scale).to_event(1)


def test_pyro_samples_as_weights_with_an_autoguide():
    """Variational posterior of b: precision s⁻² + N k, mean as at the mode."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    target, coordinates = BoltzmannTarget(Harmonic(1, 2.0, 1.5), beta=1.0), IdentityCoordinates(1)
    encoder = GaussianEncoder(coordinates.circular, 1, (), (), variance="constant")
    cg = CoarseGrainedModel(target, coordinates, StandardNormalPrior(1), RandomShift(), encoder)
    cg.requires_grad_(False)
    gibbs_scale, n = 20.0, 64

    def weights():  # outside of the plate: one draw for all samples
        return pyro.sample("shift", SHIFT_PRIOR)

    variational = AutoNormal(weights)

    def model(num_samples):
        weights()
        poutine.scale(cg.model, gibbs_scale / num_samples)(num_samples)

    def guide(num_samples):
        drawn = variational()
        generator = poutine.block(poutine.condition(cg.guide, data=drawn), hide=[*drawn])
        poutine.scale(generator, gibbs_scale / num_samples)(num_samples)

    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.995}
    )
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(700):
        svi.step(n)
        optimizer.step()
    low, middle, high = variational.quantiles([0.1587, 0.5, 0.8413])["shift"].flatten().tolist()
    assert middle == pytest.approx(60.0 / 44.0, abs=0.02)
    assert (high - low) / 2 == pytest.approx(44.0**-0.5, rel=0.1)
    pyro.clear_param_store()
