import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from toy_models import POSTERIOR_VARIANCE, TOYS, gaussian_model, solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import Coordinates, IdentityCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.abstract import CappedEnergy, Energy
from pyrocg.energies.toy import DoubleWell, Harmonic
from pyrocg.priors import GaussianMixturePrior, StandardNormalPrior, TorusPrior
from pyrocg.target import BoltzmannTarget
from pyrocg.weights import ess, log_mean_exp, log_mean_exp_error

# of log Z from 20 000 samples of the untrained model
LARGEST_ERROR = {
    "harmonic": 0.01,
    "mixture": 0.01,
    "double well": 0.03,
    "many well": 0.01,
    "mueller-brown": 0.01,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    pyro.clear_param_store()


# Priors, as a user may write them.


class LearnedPrior(PyroModule):
    """A Pyro module whose call returns a distribution."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(1))
        self.scale = PyroParam(torch.ones(1), constraint=dist.constraints.positive)

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)


def hierarchical():
    """A program with a hyper-parameter before z."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    return pyro.sample("z", dist.Normal(torch.zeros(1), scale.unsqueeze(-1)).to_event(1))


def with_a_successor():
    """A program with an auxiliary variable that depends on z."""
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("mark", dist.Normal(0.5 * z[..., 0], 1.0))
    return z


PRIORS = {
    "module": lambda: StandardNormalPrior(1),
    "torus": lambda: TorusPrior(1),
    "mixture": lambda: GaussianMixturePrior(1, 3),
    "distribution": lambda: dist.Normal(torch.zeros(1), 1.5).to_event(1),
    "pyro module": LearnedPrior,
    "hierarchical": lambda: hierarchical,
    "successor": lambda: with_a_successor,
}


def models():
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    mixture = CoarseGrainedModel.from_basins(
        target, IdentityCoordinates(2), latent_dim=1, hidden=(8,), n_couplings=2
    )
    return {"basins": mixture} | {
        name: gaussian_model(prior(), circular_latent=name == "torus")
        for name, prior in PRIORS.items()
    }


@pytest.fixture(scope="module", params=["basins", *PRIORS])
def cg(request):
    torch.manual_seed(0)
    return models()[request.param]


def plain_elbo(cg, n, seed=1, loss=None):
    torch.manual_seed(seed)
    return -(loss or Trace_ELBO()).loss(cg.model, cg.guide, n) / n


# The bound


def test_plain_pyro_gives_the_mean_log_weight(cg):
    torch.manual_seed(1)
    samples = cg.sample(50)
    assert samples.log_weights.shape == (50,)
    assert samples.log_weights.mean().item() == pytest.approx(plain_elbo(cg, 50), abs=1e-3)


def test_every_prior_keeps_the_bound_and_an_unbiased_z(cg):
    log_z = DoubleWell().log_z()
    log_w = cg.sample(50_000).log_weights.double()
    error = (log_w.std() / math.sqrt(len(log_w))).item()
    assert log_w.mean().item() < log_z + 4 * error
    estimate = log_mean_exp(log_w).item()
    assert estimate < log_z + 4 * log_mean_exp_error(log_w).item()


@pytest.mark.parametrize("t", [1.0, 0.3])
@pytest.mark.parametrize("toy", TOYS)
def test_elbo_is_below_log_z_and_weights_recover_it(toy, t):
    energy = TOYS[toy]()
    cg = CoarseGrainedModel.from_basins(
        BoltzmannTarget(energy, beta=1.0), IdentityCoordinates(energy.dim), latent_dim=1
    )
    cg.temper = t
    log_w = cg.sample(20_000).log_weights.double()
    log_z = energy.log_z(temper=t)
    assert log_w.mean().item() < log_z + 4 * (log_w.std() / math.sqrt(len(log_w))).item()
    error = log_mean_exp_error(log_w).item()
    estimate = log_mean_exp(log_w).item()
    assert estimate < log_z + 4 * error + 1e-4
    if t == 1.0:
        assert error < LARGEST_ERROR[toy]
        assert estimate == pytest.approx(log_z, abs=4 * error + 1e-4)


def test_weights_are_the_formula():
    cg = gaussian_model(latent_dim=2)
    cg.temper = 0.4
    s = cg.sample(20)
    z, u = s.latents["z"], s.u
    with torch.no_grad():
        expected = (
            -0.4 * DoubleWell()(u)
            + cg.encoder(u).log_prob(z)
            - cg.prior().log_prob(z)
            - cg.decoder(z).log_prob(u)
        )
        information = cg.encoder(u).log_prob(z) - cg.prior().log_prob(z)
    torch.testing.assert_close(s.log_weights, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(s.reduced_energy, DoubleWell()(u))
    torch.testing.assert_close(s.latent_log_ratio, information)


def test_encoder_draws_average_over_the_latents():
    """With a wrong variance of the encoder, K = 0 loses its KL and large K nearly nothing."""
    cg, variance = solved_model(), 1.0
    cg.encoder.log_variance.value.data.fill_(1.0)  # of variance 1
    ratio = POSTERIOR_VARIANCE / variance
    lost = 0.5 * (ratio - 1 - math.log(ratio))
    log_z = cg.target.energy.log_z()
    losses = []
    for draws in (0, 1, 30):
        log_w = cg.sample(20_000, encoder_draws=draws).log_weights
        error = (log_w.std() / math.sqrt(len(log_w))).item()
        losses.append(log_z - log_w.mean().item())
        assert losses[-1] > -4 * error
        assert log_mean_exp(log_w).item() == pytest.approx(
            log_z, abs=4 * log_mean_exp_error(log_w).item()
        )
    assert losses[0] == pytest.approx(lost, abs=0.01)
    assert losses[1] < 0.8 * lost
    assert losses[2] < 0.05 * lost


def test_encoder_draws_keep_z_for_every_prior(cg):
    log_z = DoubleWell().log_z()
    plain, averaged = (
        cg.sample(20_000, encoder_draws=draws).log_weights.double() for draws in (0, 4)
    )
    found = log_mean_exp(averaged).item()
    assert found == pytest.approx(
        log_mean_exp(plain).item(),
        abs=4 * (log_mean_exp_error(plain) + log_mean_exp_error(averaged)).item(),
    )
    assert averaged.mean().item() < log_z + 4 * (averaged.std() / math.sqrt(20_000)).item()
    assert averaged.mean().item() > plain.mean().item() - 4 * (plain.std() / 141).item()


def test_encoder_draws_leave_deterministic_sites_alone():
    def prior():
        hidden = pyro.sample("hidden", dist.Normal(0.0, 0.5))
        w = pyro.deterministic("w", hidden + 1.0)
        return pyro.sample("z", dist.Normal(w.unsqueeze(-1) - 1.0, 1.0).to_event(1))

    cg = gaussian_model(prior)
    plain, averaged = (cg.sample(20_000, encoder_draws=k).log_weights.double() for k in (0, 5))
    assert log_mean_exp(averaged).item() == pytest.approx(
        log_mean_exp(plain).item(),
        abs=4 * (log_mean_exp_error(plain) + log_mean_exp_error(averaged)).item(),
    )


def test_encoder_draws_outside_of_the_prior_count_as_zero():
    cg = gaussian_model(TorusPrior(1))
    with torch.no_grad():
        cg.encoder.log_variance.layers[-1].bias.fill_(2.5)  # wider than the torus
    plain = cg.sample(40_000).log_weights.double()
    with pytest.warns(UserWarning, match=r"prior or decoder have no density, .* torus"):
        averaged = cg.sample(40_000, encoder_draws=5).log_weights.double()
    assert not bool(averaged.isnan().any())
    assert log_mean_exp(averaged).item() == pytest.approx(
        log_mean_exp(plain).item(),
        abs=4 * (log_mean_exp_error(plain) + log_mean_exp_error(averaged)).item(),
    )


def test_a_program_without_z_is_refused():
    def unnamed():
        return pyro.sample("latent", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"a sample site 'z', got \['latent'\]"):
        gaussian_model(unnamed).sample(5)


def test_an_energy_without_temperature_is_refused():
    circular = torch.zeros(2, dtype=torch.bool)
    parts = StandardNormalPrior(1), GaussianDecoder(circular, 1), GaussianEncoder(circular, 1)
    with pytest.raises(TypeError, match="expected a BoltzmannTarget, got DoubleWell; give"):
        CoarseGrainedModel(DoubleWell(), IdentityCoordinates(2), *parts)


def test_an_encoder_with_other_sites_than_the_prior_is_refused():
    encoder = GaussianEncoder(torch.zeros(2, dtype=torch.bool), 1, (8,), [nn.Tanh])

    class WithAnother(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, u):
            pyro.sample("another", dist.Normal(0.0, 1.0).expand([len(u)]))
            return pyro.sample("z", self.encoder(u))

    with pytest.raises(ValueError, match=r"sites of the prior"):
        gaussian_model(encoder=WithAnother()).sample(5)


def test_elbo_is_log_z_where_the_family_holds_the_answer():
    cg = solved_model()
    log_w = cg.sample(100).log_weights
    log_z = cg.target.energy.log_z()
    torch.testing.assert_close(log_w, torch.full_like(log_w, log_z), atol=1e-5, rtol=0)
    assert plain_elbo(cg, 10) == pytest.approx(log_z, abs=1e-5)
    assert plain_elbo(cg, 10, loss=RenyiELBO(alpha=0.0, num_particles=3)) == pytest.approx(log_z)


def test_from_basins_is_exact_for_a_harmonic_target():
    energy = Harmonic(3, torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]]), 1.0)
    cg = CoarseGrainedModel.from_basins(
        BoltzmannTarget(energy, beta=1.0), IdentityCoordinates(3), latent_dim=1, n_modes=1
    ).double()
    log_w = cg.sample(200).log_weights
    torch.testing.assert_close(log_w, torch.full_like(log_w, energy.log_z()), atol=2e-5, rtol=0)


class Rotors(Energy):
    """Four angles, each close to the one before: nearly a Gaussian of strong correlations."""

    def __init__(self):
        super().__init__((4,))

    def _energy(self, x):
        steps = torch.diff(x, prepend=torch.zeros_like(x[:, :1]))
        return 100.0 * (1.0 - steps.cos()).sum(-1)


class Angles(IdentityCoordinates):
    """Four circular coordinates."""

    def __init__(self):
        super().__init__(4)
        self.circular = torch.ones(4, dtype=torch.bool)
        self.rotatable = torch.arange(4)


def test_many_torsions_are_drawn_with_their_correlations():
    """Drawn at once, given z, they would have an effective sample size of a few per cent."""
    torch.manual_seed(0)
    target = BoltzmannTarget(Rotors(), beta=1.0)
    cg = CoarseGrainedModel.from_basins(target, Angles(), latent_dim=1, n_modes=1).double()
    assert cg.decoder.edges == [0, 1, 2, 3, 4]
    assert cg.decoder.labels.shape == (1, 8)
    log_w = cg.sample(2000).log_weights
    assert ess(log_w) > 0.9
    bessel = torch.special.i0e(torch.tensor(100.0, dtype=torch.float64))
    assert float(log_mean_exp(log_w)) == pytest.approx(4 * math.log(2 * math.pi * bessel), abs=0.02)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
def test_trace_mean_field_elbo_is_wrong():
    """It takes KL(p(z) || r(z|u)) as if u were independent of z: off by 1/v - 1 = 1 nat here."""
    cg = solved_model()
    off = plain_elbo(cg, 100_000, loss=TraceMeanField_ELBO()) - cg.target.energy.log_z()
    assert off == pytest.approx(1 - 1 / POSTERIOR_VARIANCE, abs=0.03)


def test_latent_information_is_the_mutual_information_of_a_solved_model():
    information = solved_model().sample(100_000).latent_log_ratio.mean().item()
    assert information == pytest.approx(-0.5 * math.log(POSTERIOR_VARIANCE), abs=0.01)


def test_multi_sample_bounds_are_tighter():
    cg = gaussian_model()
    single, multi = (
        torch.tensor([plain_elbo(cg, 1, seed, loss) for seed in range(200)])
        for loss in (
            Trace_ELBO(),
            RenyiELBO(0.0, num_particles=10, vectorize_particles=True, max_plate_nesting=1),
        )
    )
    errors = [float(found.std()) / math.sqrt(len(found)) for found in (single, multi)]
    assert single.mean() + 4 * errors[0] < multi.mean() - 4 * errors[1]
    assert multi.mean() < DoubleWell().log_z() + 4 * errors[1]


# An angle on the real line breaks the bound


class Circle(Coordinates):
    """One angle, x = u."""

    def __init__(self):
        super().__init__((1,), ["angle"], torch.tensor([True]))

    def _forward(self, u):
        return u, u.new_zeros(u.shape[:-1])

    _inverse = _forward


class VonMises(Energy):
    """U = -κ cos x, Z = 2π I0(κ) over one turn."""

    def __init__(self, kappa=1.0):
        super().__init__((1,))
        self.kappa = kappa

    def _energy(self, x):
        return -self.kappa * x[:, 0].cos()

    def log_z(self):
        return math.log(2 * math.pi * float(torch.special.i0(torch.tensor(self.kappa))))


def angle_model(wrapped, log_variance):
    mask = torch.tensor([wrapped])
    return CoarseGrainedModel(
        BoltzmannTarget(VonMises(), beta=1.0),
        Circle(),
        StandardNormalPrior(1),
        GaussianDecoder(mask, 1, (8,), initial_log_variance=log_variance),
        GaussianEncoder(torch.tensor([True]), 1, (8,), (nn.Tanh,), initial_log_variance=0.0),
    )


@pytest.mark.parametrize("log_variance", [-1.0, 1.0, 2.5, 5.0, 10.0])
def test_wrapped_normal_on_an_angle_keeps_the_bound(log_variance):
    """At every width, up to the uniform distribution."""
    log_w = angle_model(True, log_variance).sample(50_000).log_weights
    error = (log_w.std() / math.sqrt(len(log_w))).item()
    assert log_w.mean().item() < VonMises().log_z() + 4 * error


def test_unwrapped_gaussian_on_an_angle_breaks_the_bound():
    """Its entropy, counted over many turns of one circle, has no bound."""
    over = []
    for log_variance in (2.5, 5.0, 10.0):
        log_w = angle_model(False, log_variance).sample(50_000).log_weights
        over.append(log_w.mean().item() - VonMises().log_z())
    assert over[0] > 0.05
    assert over[1] > over[0] + 1
    assert over[2] > over[1] + 2


def test_training_widens_an_unwrapped_gaussian_beyond_the_circle_and_not_a_wrapped_one():
    ends = {}
    for wrapped in (True, False):
        torch.manual_seed(0)
        cg = angle_model(wrapped, 1.5)
        train(cg, pyro.optim.Adam({"lr": 2e-2}), steps=300)
        ends[wrapped] = plain_elbo(cg, 20_000) - VonMises().log_z()
    assert -0.3 < ends[True] < 0.03
    assert ends[False] > 0.5


# Training with plain Pyro


def changed(cg, before):
    return {name for name, value in cg.state_dict().items() if not torch.equal(value, before[name])}


def state(cg):
    return {name: value.clone() for name, value in cg.state_dict().items()}


def trainable(cg):
    return {name for name, p in cg.named_parameters() if p.requires_grad}


def train(cg, optimiser=None, loss=None, steps=3):
    """A few steps; layers behind a zero output learn from the second on."""
    optimiser = optimiser or pyro.optim.Adam({"lr": 1e-2})
    svi = SVI(cg.model, cg.guide, optimiser, loss=loss or Trace_ELBO())
    return [svi.step(16) for _ in range(steps)]


OPTIMISERS = {
    "adam": lambda: pyro.optim.Adam({"lr": 1e-2}),
    "clipped adam": lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "clip_norm": 5.0}),
    "scheduler": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.99}
    ),
}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_svi_trains_every_parameter_without_the_global_store(optimiser, local):
    with pyro.settings.context(module_local_params=local):
        cg = gaussian_model(GaussianMixturePrior(1, 2))
        before = state(cg)
        losses = train(cg, OPTIMISERS[optimiser]())
    assert all(math.isfinite(loss) for loss in losses)
    assert changed(cg, before) == trainable(cg)
    assert len(pyro.get_param_store()) == 0


def test_svi_and_the_module_take_the_same_steps():
    torch.manual_seed(0)
    first = gaussian_model()
    second = copy.deepcopy(first)
    svi = SVI(first.model, first.guide, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO())
    elbo = Trace_ELBO()(second.model, second.guide)
    adam = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    for step in range(3):
        torch.manual_seed(step)
        svi.step(8)
        torch.manual_seed(step)
        adam.zero_grad()
        elbo(8).backward()
        adam.step()
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_svi_improves_the_bound():
    cg = gaussian_model(hidden=(32,))
    start = plain_elbo(cg, 2000)
    train(cg, pyro.optim.Adam({"lr": 2e-2}), steps=300)
    assert start + 5 < plain_elbo(cg, 2000) < DoubleWell().log_z() + 0.1


def test_svi_with_renyi_elbo():
    cg = gaussian_model()
    before = state(cg)
    loss = RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    train(cg, loss=loss)
    assert changed(cg, before) == trainable(cg)


@pytest.mark.parametrize("local", [False, True])
def test_two_models_of_the_same_shape_do_not_touch_each_other(local):
    with pyro.settings.context(module_local_params=local):
        first, second = gaussian_model(), gaussian_model()
        before = state(second)
        train(first)
        assert changed(second, before) == set()
        train(second)
    assert changed(second, before) == trainable(second)


def test_frozen_parameters_stay():
    cg = gaussian_model()
    cg.decoder.requires_grad_(False)
    before = state(cg)
    train(cg)
    assert changed(cg, before) == {name for name in before if name.startswith("model.encoder")}


def test_pyro_module_priors_train_side_by_side_with_local_parameters():
    with pyro.settings.context(module_local_params=True):
        first, second = gaussian_model(LearnedPrior()), gaussian_model(LearnedPrior())
        before = state(first), state(second)
        train(first)
        assert changed(first, before[0]) == set(before[0]) - {"model.temper"}
        second.sample(5)
        assert changed(second, before[1]) == set()
    assert len(pyro.get_param_store()) == 0


def test_pyro_module_prior_uses_the_global_store_by_default():
    """That is what a PyroModule does; the other parameters stay out of the store."""
    cg = gaussian_model(LearnedPrior())
    train(cg)
    assert set(pyro.get_param_store()) == {"loc", "scale"}
    pyro.clear_param_store()


def test_an_encoder_program_may_have_the_auxiliary_sites():
    """An encoder program with the prior's sites takes the place of the program's own draws."""

    class Posterior(nn.Module):
        def __init__(self):
            super().__init__()
            self.z = GaussianEncoder(torch.zeros(2, dtype=torch.bool), 1, (8,), (nn.Tanh,))

        def forward(self, u):
            pyro.sample("scale", dist.LogNormal(0.1 * u[..., 0], 0.4))
            pyro.sample("z", self.z(u))

    cg = gaussian_model(hierarchical, encoder=Posterior())
    samples = cg.sample(20_000)
    log_w = samples.log_weights
    assert set(samples.latents) == {"scale", "z"}
    assert log_w.mean().item() < DoubleWell().log_z()
    train(cg)


# Pyro's handlers


@pytest.fixture
def _validated():
    with pyro.validation_enabled(True):
        yield


@pytest.mark.usefixtures("_validated")
def test_handlers_work_on_both_halves(cg):
    guide = poutine.trace(cg.guide).get_trace(6)
    model = poutine.trace(poutine.replay(cg.model, trace=guide)).get_trace(6)
    guide.compute_log_prob()
    model.compute_log_prob()
    assert torch.equal(model.nodes["u"]["value"], guide.nodes["u"]["value"])
    assert torch.equal(model.nodes["z"]["value"], guide.nodes["z"]["value"])
    assert model.nodes["boltzmann"]["log_prob"].shape == (6,)
    assert model.nodes["u"]["log_prob"].abs().max() == 0
    assert guide.nodes["u"]["log_prob"].shape == (6,)
    elbo = Trace_ELBO()(cg.model, cg.guide)
    assert elbo(6).requires_grad


@pytest.mark.usefixtures("_validated")
def test_condition_and_block():
    cg = gaussian_model()
    z = torch.full((5, 1), 2.0)
    conditioned = poutine.condition(cg.guide, data={"z": z})
    trace = poutine.trace(conditioned).get_trace(5)
    assert torch.equal(trace.nodes["z"]["value"], z)
    assert trace.nodes["z"]["is_observed"]
    hidden = poutine.trace(poutine.block(cg.guide, hide=["z"])).get_trace(5)
    assert "z" not in hidden.nodes
    assert "u" in hidden.nodes


@pytest.mark.usefixtures("_validated")
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_guide_and_model(parallel):
    cg = gaussian_model()
    generated = Predictive(cg.guide, num_samples=3, parallel=parallel)(5)
    assert generated["u"].shape == (3, 5, 2)
    scored = Predictive(cg.model, guide=cg.guide, num_samples=3, parallel=parallel)(5)
    assert scored["x"].shape == (3, 5, 2)
    assert scored["log_boltzmann"].shape == (3, 5)
    torch.testing.assert_close(scored["log_boltzmann"], -DoubleWell()(scored["x"]))


@pytest.mark.parametrize("n", [0, -1, 2.5, "3"])
def test_number_of_samples_is_checked(n):
    with pytest.raises(ValueError, match="expected a number of samples of at least 1"):
        gaussian_model().sample(n)


# The object


def test_copies_files_and_dtypes():
    cg = gaussian_model(GaussianMixturePrior(1, 2))
    train(cg)
    reference = plain_elbo(cg, 20)
    other = gaussian_model(GaussianMixturePrior(1, 2))
    other.load_state_dict(cg.state_dict())
    for same in (copy.deepcopy(cg), pickle.loads(pickle.dumps(cg)), other):
        assert plain_elbo(same, 20) == reference
    copy.deepcopy(cg).double().sample(5)
    assert cg.double().sample(5).u.dtype == torch.float64


def test_temper_is_checked_and_saved():
    cg = gaussian_model()
    cg.temper = 0.25
    assert cg.temper == 0.25
    assert cg.state_dict()["model.temper"].item() == 0.25
    for t in (0.0, -0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="expected a tempering factor"):
            cg.temper = t
    assert cg.temper == 0.25


def test_samples_are_weighted_by_the_uncapped_energy():
    cg = gaussian_model(energy=CappedEnergy(Harmonic(2), cap=0.1, softness=0.1))
    exact, capped = cg.sample(50), cg.sample(50, exact=False)
    torch.testing.assert_close(exact.reduced_energy, Harmonic(2)(exact.x))
    assert capped.reduced_energy.max() < 1.5
    assert isinstance(cg.target.energy, CappedEnergy)


def test_encode_draws_collective_variables():
    cg = solved_model()
    x = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    z = cg.encode(x, num_samples=20_000)["z"]
    assert z.shape == (20_000, 2, 1)
    assert z.mean(0).flatten().tolist() == pytest.approx([1.0, 0.0], abs=0.02)
    assert z.var(0).flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert set(models()["basins"].encode(x.float())) == {"component", "z"}


def test_target_and_coordinates_must_fit():
    circular = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expected coordinates of configurations \(2,\)"):
        CoarseGrainedModel(
            BoltzmannTarget(DoubleWell(), beta=1.0),
            IdentityCoordinates(3),
            StandardNormalPrior(1),
            GaussianDecoder(circular, 1),
            GaussianEncoder(circular, 1),
        )
