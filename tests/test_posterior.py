"""Checked against a factor model whose divergence is known in closed form."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from factor_models import (
    CORRELATED,
    COVARIANCE,
    ENCODER,
    NOISE,
    PRECISION,
    TRUTH,
    W,
    factor_model,
    flat,
    joint_kl,
    marginal_kl,
)
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn
from torch.autograd.functional import hessian, jacobian
from toy_models import gaussian_model

import pyrocg
from pyrocg.basins import find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import save_state
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.curvature import Fisher
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import DoubleWell
from pyrocg.networks import with_state
from pyrocg.objectives import PathGradientELBO
from pyrocg.posterior import (
    EnsemblePosterior,
    LaplacePosterior,
    SWAGPosterior,
    load_posterior,
)
from pyrocg.priors import StandardNormalPrior, StratifiedPrior
from pyrocg.target import BoltzmannTarget
from pyrocg.weight_priors import ARDWeightPrior, GaussianWeightPrior

# The curvature


def test_the_fisher_information_is_the_exact_hessian_while_the_encoder_stands_still():
    exact = hessian(joint_kl, TRUTH)
    torch.testing.assert_close(exact, torch.diag(torch.cat([1 / NOISE, 1 / NOISE, 0 * W + 0.5])))
    fisher = Fisher(factor_model(), encoder_draws=0, num_draws=4000)
    estimate = fisher.times(torch.eye(9).double())
    scale = exact.diagonal().sqrt()
    error = (estimate - exact) / scale / scale[:, None]
    assert error.abs().max() < 0.15
    torch.testing.assert_close(fisher.diagonal(), estimate.diagonal())


def test_the_marginal_information_is_the_hessian_at_the_best_encoder():
    exact = hessian(marginal_kl, TRUTH)
    joint = hessian(joint_kl, TRUTH)
    assert torch.linalg.eigvalsh(joint - exact)[0] > -1e-8
    fisher = Fisher(factor_model(), num_draws=2500)
    estimate = fisher.times(torch.eye(9).double())
    scale = exact.diagonal().sqrt()
    error = (estimate - exact) / scale / scale[:, None]
    assert error.abs().max() < 0.2
    assert ((joint - exact) / scale / scale[:, None]).abs().max() > 0.5  # it tells them apart


class JointEncoder(nn.Module):
    """r(h, z|u) of the factor model whose z has a random mean h: exact, and h comes first."""

    def forward(self, u):
        gain, variance = ENCODER[:3], 1 / PRECISION  # of z given u
        mean = (u @ gain)[..., None]
        h_mean, h_variance = 0.64 * mean, 0.64**2 * variance + 0.64 * 0.36
        h = pyro.sample("h", dist.Normal(h_mean, h_variance**0.5).to_event(1))
        slope = 0.64 * variance / h_variance
        rest = variance * (1 - 0.64 * slope)
        pyro.sample("z", dist.Normal(mean + slope * (h - h_mean), rest**0.5).to_event(1))


def test_the_marginal_information_is_averaged_over_all_latents_of_an_encoder_program():
    """z ~ N(h, 0.36), h ~ N(0, 0.64): q(u) is that of the factor model."""

    def hierarchical():
        h = pyro.sample("h", dist.Normal(torch.zeros(1).double(), 0.8).to_event(1))
        return pyro.sample("z", dist.Normal(h, 0.6).to_event(1))

    base = factor_model()
    cg = CoarseGrainedModel(
        base.target, base.coordinates, hierarchical, base.decoder, JointEncoder()
    ).double()
    assert cg.sample(100).joint_log_weights.std() < 1e-6  # the fit is perfect
    exact = hessian(marginal_kl, TRUTH)
    estimate = Fisher(cg, num_draws=1500).times(torch.eye(9).double())
    scale = exact.diagonal().sqrt()
    error = (estimate - exact) / scale / scale[:, None]
    assert error.abs().max() < 0.3


# The scale


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "full"])
def test_the_scale_is_the_number_of_samples_where_the_likelihood_is_well_specified(structure):
    cg = factor_model()
    for draws in (0, 16):
        posterior = LaplacePosterior.fit(
            cg, 5000, loss=Trace_ELBO(), structure=structure, encoder_draws=draws, num_draws=500
        )
        assert posterior.gibbs_scale == pytest.approx(5000, rel=0.05)


def test_path_gradients_have_no_noise_at_a_perfect_fit_but_what_the_encoder_puts_in():
    cg = factor_model()
    with pytest.raises(ValueError, match="the fit is perfect, so there is nothing to calibrate"):
        LaplacePosterior.fit(cg, 500, encoder_draws=0, num_draws=100)
    joint, marginal = (hessian(kl, TRUTH) for kl in (joint_kl, marginal_kl))
    expected = 9 / float(torch.trace(torch.linalg.solve(marginal, joint - marginal))) * 500
    found = LaplacePosterior.fit(cg, 500, structure="full", num_draws=1000, weight_prior=flat)
    assert found.gibbs_scale == pytest.approx(expected, rel=0.4)  # soft directions are rough


def spread_of_trained_weights(loss, target, with_encoder, n=500, seeds=200):
    """Covariance over seeds of weights trained on n samples: one Newton step from the optimum.

    Also the model at the optimum, found by Newton's method in closed form.
    """
    size = 14 if with_encoder else 9
    theta = torch.cat([TRUTH, ENCODER])

    def kl(part):
        return joint_kl(torch.cat([part, theta[size:]]), target)

    best = theta[:size]
    for _ in range(20):
        curvature = hessian(kl, best)
        best = best - torch.linalg.solve(curvature, jacobian(kl, best))
    cg = factor_model(*torch.cat([best, theta[size:]]).split([9, 5]), target)
    parameters = list(cg.decoder.parameters())
    parameters += list(cg.encoder.parameters()) if with_encoder else []
    elbo, steps = loss(cg.model, cg.guide), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        gradient = torch.autograd.grad(elbo(n) / n, parameters)
        gradient = torch.cat([g.flatten() for g in gradient])
        steps.append(-torch.linalg.solve(curvature, gradient)[:9])
    steps = torch.stack(steps)
    assert (steps.mean(0) / steps.std(0)).abs().max() < 5 * seeds**-0.5
    return torch.cov(steps.T), cg, torch.linalg.inv(torch.linalg.inv(curvature)[:9, :9])


@pytest.mark.parametrize(
    ("loss", "target", "with_encoder", "rel"),
    [
        (Trace_ELBO(), COVARIANCE, True, 0.2),
        (PathGradientELBO(), CORRELATED, False, 0.2),
        (PathGradientELBO(), CORRELATED, True, 0.4),
    ],
    ids=["well specified", "misspecified, path", "misspecified, path, encoder trained"],
)
def test_the_posterior_is_as_wide_as_the_spread_of_trained_weights(loss, target, with_encoder, rel):
    """In nats above the minimum of the divergence."""
    spread, cg, curvature = spread_of_trained_weights(loss, target, with_encoder)
    posterior = LaplacePosterior.fit(
        cg,
        500,
        loss=loss,
        structure="full",
        weight_prior=flat,
        encoder_draws=16 if with_encoder else 0,
        num_draws=1000,
    )
    covariance = posterior.covariance()
    nats = float((curvature * covariance).sum() / (curvature * spread).sum())
    assert nats == pytest.approx(1.0, rel=rel)
    if type(loss) is Trace_ELBO:  # then every weight by itself, too
        ratio = covariance.diagonal() / spread.diagonal()
        assert 0.6 < ratio.min() < ratio.max() < 1.6


def test_other_losses_have_no_known_noise():
    with pytest.raises(TypeError, match="expected PathGradientELBO or Trace_ELBO, got RenyiELBO"):
        LaplacePosterior.fit(factor_model(), 500, loss=RenyiELBO())


# The Laplace approximation


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "full"])
def test_covariance_is_the_inverse_of_prior_and_information(structure):
    """The information is diagonal while the encoder stands still."""
    prior, scale = GaussianWeightPrior(0.1), 200.0
    posterior = LaplacePosterior.fit(
        factor_model(),
        gibbs_scale=scale,
        structure=structure,
        rank=3,
        weight_prior=prior,
        encoder_draws=0,
        num_draws=3000,
    )
    exact = 1.0 / (100.0 + scale * hessian(joint_kl, TRUTH).diagonal())
    covariance = posterior.covariance()
    assert ((covariance.diagonal() / exact - 1).abs() < 0.15).all()
    whitened = covariance / exact.sqrt() / exact.sqrt()[:, None]
    assert (whitened - torch.eye(9)).abs().max() < 0.15
    torch.testing.assert_close(posterior.mean[:6], TRUTH[:6])


def test_low_rank_of_full_rank_is_full():
    options = {"gibbs_scale": 50.0, "num_draws": 500}
    full = LaplacePosterior.fit(factor_model(), structure="full", **options)
    low = LaplacePosterior.fit(factor_model(), structure="low_rank", rank=9, **options)
    scale = full.covariance().diagonal().sqrt()
    error = (low.covariance() - full.covariance()) / scale / scale[:, None]
    assert error.abs().max() < 0.05  # the rest is at least a hundredth of the diagonal


def test_low_rank_keeps_correlations_that_the_diagonal_drops():
    exact = 50 * hessian(marginal_kl, TRUTH) + torch.eye(9)
    scale, errors = exact.diagonal().sqrt(), []
    for structure in ("diagonal", "low_rank"):
        posterior = LaplacePosterior.fit(
            factor_model(), gibbs_scale=50.0, structure=structure, rank=4, num_draws=1000
        )
        error = torch.linalg.inv(posterior.covariance()) - exact
        errors.append(float((error / scale / scale[:, None]).norm()))
    assert errors[1] < 0.6 * errors[0]


def test_draws_have_mean_and_covariance():
    posterior = LaplacePosterior.fit(factor_model(), gibbs_scale=50.0, rank=4, num_draws=300)
    draws = posterior.draw(4000, seed=0)
    vectors = torch.stack([torch.cat([d[n].flatten() for n in posterior.names]) for d in draws])
    covariance = posterior.covariance()
    scale = covariance.diagonal().sqrt()
    assert ((vectors.mean(0) - posterior.mean) / scale).abs().max() < 4.5 * 4000**-0.5
    error = (torch.cov(vectors.T) - covariance) / scale / scale[:, None]
    assert error.abs().max() < 0.1


def test_draws_have_random_numbers_of_their_own():
    """Samples of the same seed would otherwise have the noise of the weights as their latents."""
    posterior = LaplacePosterior.fit(
        factor_model(), gibbs_scale=50.0, structure="diagonal", num_draws=50
    )
    (draw,) = posterior.draw(1, seed=3)
    vector = torch.cat([draw[n].flatten() for n in posterior.names])
    noise = (vector - posterior.mean) / posterior.std
    samples = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert (noise - samples).abs().max() > 0.1


def test_the_width_of_predictions_falls_with_the_scale():
    cg, widths = factor_model(), []
    for scale in (100.0, 10_000.0):
        posterior = LaplacePosterior.fit(cg, gibbs_scale=scale, weight_prior=flat, num_draws=200)
        means = []
        for weights in posterior.draw(200, seed=1):
            with with_state(cg.decoder, weights):
                means.append(cg.decoder.mean(torch.ones(1).double())[0].item())
        low, high = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
        widths.append(high - low)
        assert posterior.gibbs_scale == scale
    assert widths[0] / widths[1] == pytest.approx(10.0, rel=0.01)


def test_ard_pins_what_is_switched_off():
    cg = factor_model()
    with torch.no_grad():
        cg.decoder.mean.layers[0].weight[2] = 0.0
    prior = ARDWeightPrior(only="mean.layers.0.weight")
    posterior = LaplacePosterior.fit(
        cg, gibbs_scale=100.0, structure="diagonal", weight_prior=prior, num_draws=200
    )
    assert float(posterior.std[2]) == pytest.approx((2e-5) ** 0.5, rel=0.05)  # 1 / (2 b0) = 5e4
    assert (posterior.std[:2] > 0.02).all()


def test_the_expected_excess_is_half_a_nat_for_each_weight_and_sample():
    """While the encoder stands still: half the trace of the joint Hessian times the covariance."""
    options = {"gibbs_scale": 200.0, "structure": "full", "weight_prior": flat}
    fixed = LaplacePosterior.fit(factor_model(), encoder_draws=0, num_draws=2000, **options)
    assert fixed.excess == pytest.approx(9 / (2 * 200), rel=0.1)
    trained = LaplacePosterior.fit(factor_model(), num_draws=2000, **options)
    exact = torch.linalg.solve(hessian(marginal_kl, TRUTH), hessian(joint_kl, TRUTH)).trace()
    assert trained.excess == pytest.approx(float(exact) / (2 * 200), rel=0.2)


def divergences(cg, posterior, n):
    """Of draws from the truth, in closed form but for a constant, less that of the truth."""
    found = []
    for weights in posterior.draw(n, seed=7):
        with with_state(cg.decoder, weights):
            w, b = cg.decoder.mean.layers[0].weight[:, 0], cg.decoder.mean.layers[0].bias
            theta = torch.cat([w, b, cg.decoder.log_variance.value - 0.5])
        found.append(float(joint_kl(theta.detach()) - joint_kl(TRUTH)))
    return torch.tensor(found)


def test_draws_are_as_far_from_the_truth_as_expected():
    cg = factor_model()
    posterior = LaplacePosterior.fit(cg, gibbs_scale=500.0, structure="full", num_draws=1000)
    assert posterior.prior_scale == 1.0
    assert float(divergences(cg, posterior, 500).mean()) == pytest.approx(posterior.excess, rel=0.2)


def test_the_default_prior_is_as_wide_as_the_parabola_allows():
    """After a short run, whose samples determine few directions."""
    torch.manual_seed(0)
    cg = basin_model()
    pyrocg.fit(cg, steps=40, num_samples=64, evaluate_every=20, progress=False)
    n_samples, medians, widths = 40 * 64, {}, {}
    for prior in (GaussianWeightPrior(1.0), None):
        posterior = LaplacePosterior.fit(cg, n_samples, weight_prior=prior, num_draws=200)
        widths[prior] = posterior.prior_scale
        trained = pyrocg.predict(cg, num_samples=2000, progress=False).bounds()
        drawn = pyrocg.predict(
            cg, num_samples=8000, posterior=posterior, n_weight_draws=16, progress=False
        )
        medians[prior] = float(trained[0] - drawn.bounds().quantile(0.5))
    assert math.isnan(widths[GaussianWeightPrior(1.0)])
    assert widths[None] in (0.3, 0.1, 0.03, 0.01)
    assert medians[None] < 0.2
    assert medians[GaussianWeightPrior(1.0)] > 2.0


# Every decoder


class Shifted(nn.Module):
    """A user's own decoder, without any Sequential."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(1, 4), nn.Linear(4, 2)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return dist.Normal(self.out(self.hidden(z).tanh()), self.log_scale.exp()).to_event(1)


def users_model():
    coordinates = IdentityCoordinates(2)
    encoder = GaussianEncoder(coordinates.circular, 1, (8,), [nn.Tanh])
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    return CoarseGrainedModel(target, coordinates, StandardNormalPrior(1), Shifted(), encoder)


def basin_model():
    target, coordinates = BoltzmannTarget(DoubleWell(), beta=1.0), IdentityCoordinates(2)
    basins = find_basins(target, coordinates, starts=16, steps=100)
    return CoarseGrainedModel.from_basins(
        target, coordinates, basins, latent_dim=1, hidden=(8,), n_couplings=2
    )


def program_model():
    """A hierarchical prior, with a site of its own."""

    def prior():
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(1), 0.2).to_event(1))
        return pyro.sample("z", dist.Normal(0.0 * scale, scale).to_event(1))

    return gaussian_model(prior=prior)


MODELS = {
    "gaussian": gaussian_model,
    "basins": basin_model,
    "user's": users_model,
    "program": program_model,
}


@pytest.fixture(params=MODELS)
def cg(request):
    torch.manual_seed(0)
    cg = MODELS[request.param]()
    with torch.no_grad():
        for p in cg.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return cg


def everything(cg):
    state = {k: v.clone() for k, v in cg.state_dict().items()}
    return state | {"random": torch.get_rng_state(), "t": torch.tensor(cg.temper)}


def unchanged(cg, before):
    after = everything(cg)
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "full", "last_layer"])
def test_laplace_of_every_decoder(cg, structure):
    cg.temper = 0.5
    if isinstance(cg.prior, StratifiedPrior):
        cg.prior.set_shares(torch.tensor([0.9, 0.1]))
    before = everything(cg)
    options = {"structure": structure, "rank": 5, "num_draws": 24, "encoder_draws": 2}
    first = LaplacePosterior.fit(cg, 1000, **options)
    assert unchanged(cg, before)
    assert first.gibbs_scale > 0
    torch.rand(3)
    second = LaplacePosterior.fit(cg, 1000, **options)
    for one, other in zip(first.draw(3, seed=2), second.draw(3, seed=2), strict=True):
        assert one.keys() == other.keys() == set(first.names)
        assert all(torch.equal(one[name], other[name]) for name in one)
    a, b = first.draw(2, seed=2), first.draw(2, seed=3)
    name = max(a[0], key=lambda name: a[0][name].numel())
    assert not torch.equal(a[0][name], a[1][name])
    assert not torch.equal(a[0][name], b[0][name])
    with with_state(cg.decoder, a[0]):
        assert torch.equal(cg.decoder.state_dict()[name], a[0][name])
        assert cg.sample(5).u.isfinite().all()


def test_last_layers():
    names = LaplacePosterior.fit(
        gaussian_model(), gibbs_scale=10.0, structure="last_layer", num_draws=8
    ).names
    parts = ("mean", "log_variance")
    assert names == tuple(f"{p}.layers.2.{w}" for p in parts for w in ("weight", "bias"))
    cg = users_model()
    names = LaplacePosterior.fit(cg, gibbs_scale=10.0, structure="last_layer", num_draws=8).names
    assert names == ("out.weight", "out.bias")
    names = LaplacePosterior.fit(cg, gibbs_scale=10.0, only=("log_*",), num_draws=8).names
    assert names == ("log_scale",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected either n_samples"),
        ({"n_samples": 10, "gibbs_scale": 1.0}, "expected either n_samples"),
        ({"gibbs_scale": 0.0}, "expected n_samples or gibbs_scale above 0"),
        ({"n_samples": -1}, "expected n_samples or gibbs_scale above 0"),
        ({"gibbs_scale": 1.0, "structure": "kronecker"}, 'expected a structure "diagonal"'),
        ({"gibbs_scale": 1.0, "rank": 0}, "expected a rank of at least 1"),
        ({"gibbs_scale": 1.0, "encoder_draws": 1}, "expected encoder_draws of 0 or at least 2"),
        ({"gibbs_scale": 1.0, "num_draws": 1}, "expected num_draws of at least 2"),
        ({"gibbs_scale": 1.0, "only": "nothing"}, "expected patterns that match names"),
        ({"gibbs_scale": 1.0, "structure": "last_layer", "only": "mean*"}, "expected no `only`"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LaplacePosterior.fit(gaussian_model(), **options)


def test_weights_that_nothing_determines_are_refused():
    cg = factor_model()
    cg.decoder.unused = nn.Parameter(torch.zeros(1).double())
    options = {"gibbs_scale": 10.0, "num_draws": 50}
    for structure in ("diagonal", "low_rank", "full"):
        with pytest.raises(ValueError, match="expected weights that samples or prior determine"):
            LaplacePosterior.fit(cg, **options, structure=structure, weight_prior=flat)
    prior = GaussianWeightPrior(1.0)
    posterior = LaplacePosterior.fit(cg, **options, structure="full", weight_prior=prior)
    which = posterior.names.index("unused")
    assert posterior.std[which] == pytest.approx(1.0)  # the prior's


def test_frozen_decoders_and_too_many_weights_are_refused():
    cg = gaussian_model(hidden=(200, 200))
    with pytest.raises(ValueError, match="expected at most 3000 weights for a full covariance"):
        LaplacePosterior.fit(cg, gibbs_scale=1.0, structure="full")
    cg.decoder.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a decoder with parameters that require grad"):
        LaplacePosterior.fit(cg, gibbs_scale=1.0)


def test_decoders_without_reparametrisation_are_refused():
    class Detached(Shifted):
        def forward(self, z):
            return dist.Poisson(super().forward(z).mean.exp()).to_event(1)

    cg = users_model()
    cg.guide.decoder = Detached()
    with pytest.raises(ValueError, match="expected a decoder whose samples are reparametrised"):
        LaplacePosterior.fit(cg, 100, num_draws=4)


# SWAG


SWAG = {"steps": 40, "num_samples": 16, "collect_every": 2, "rank": 5}


def test_swag_leaves_the_model_alone_and_is_reproducible(cg):
    before = everything(cg)
    first = SWAGPosterior.fit(cg, **SWAG, seed=1)
    assert unchanged(cg, before)
    assert first.deviations.shape == (len(first.mean), 5)
    second = SWAGPosterior.fit(cg, **SWAG, seed=1)
    for one, other in zip(first.draw(2, seed=2), second.draw(2, seed=2), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    with with_state(cg.decoder, first.draw(1, seed=0)[0]):
        assert cg.sample(5).u.isfinite().all()


# Ensembles


def test_ensembles_draw_their_members_evenly():
    models = [gaussian_model() for _ in range(3)]
    posterior = EnsemblePosterior.of(models)
    name = "mean.layers.0.weight"
    known = [m.decoder.state_dict()[name] for m in models]

    def which(draws):
        return [next(i for i in range(3) if torch.equal(d[name], known[i])) for d in draws]

    chosen = which(posterior.draw(7, seed=0))
    assert sorted(chosen.count(i) for i in range(3)) == [2, 2, 3]
    assert chosen == which(posterior.draw(7, seed=0))
    assert len({tuple(which(posterior.draw(7, seed=s))) for s in range(5)}) > 1
    decoders = EnsemblePosterior.of([m.decoder for m in models])
    states = EnsemblePosterior.of([m.decoder.state_dict() for m in models])
    assert which(decoders.draw(7, seed=0)) == which(states.draw(7, seed=0)) == chosen
    posterior.draw(1, seed=0)[0][name].zero_()
    assert which(posterior.draw(7, seed=0)) == chosen


def test_ensembles_are_checked():
    with pytest.raises(ValueError, match="expected at least one member"):
        EnsemblePosterior.of([])
    with pytest.raises(ValueError, match="expected decoders of the same names and shapes"):
        EnsemblePosterior.of([gaussian_model(), gaussian_model(hidden=(9,))])
    with pytest.raises(ValueError, match="expected a number of draws of at least 1, got 0"):
        EnsemblePosterior.of([gaussian_model()]).draw(0, seed=0)


# Saving


def posteriors(cg):
    return [
        LaplacePosterior.fit(cg, gibbs_scale=100.0, num_draws=24, rank=3),
        SWAGPosterior.fit(cg, **SWAG),
        EnsemblePosterior.of([cg, copy.deepcopy(cg)]),
    ]


def test_saved_posteriors_draw_the_same(tmp_path):
    for posterior in posteriors(gaussian_model()):
        path = tmp_path / "posterior.pt"
        posterior.save(path)
        loaded = load_posterior(path)
        assert type(loaded) is type(posterior)
        for one, other in zip(posterior.draw(3, 5), loaded.draw(3, 5), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
            assert all(one[name].dtype == other[name].dtype for name in one)
        assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path):
    save_state(tmp_path / "state.pt", {"step": 1})
    with pytest.raises(ValueError, match=r"expected a posterior .* got kind None"):
        load_posterior(tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError):
        load_posterior(tmp_path / "none.pt")
