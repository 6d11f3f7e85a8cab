import pyro
import pyro.distributions as dist
import pytest
import torch
from extended_models import rotor_model
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from toy_models import gaussian_model, solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.decoders import CouplingDecoder, GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.toy import DoubleWell
from pyrocg.objectives import AnalyticEntropyELBO, ForwardKLELBO, PathGradientELBO
from pyrocg.priors import GaussianMixturePrior
from pyrocg.target import BoltzmannTarget


def gradients(cg, loss, n, seed=0):
    torch.manual_seed(seed)
    parameters = list(cg.guide.parameters()) + list(cg.model.parameters())
    value = loss(cg.model, cg.guide)(n) / n
    return value, torch.autograd.grad(value, parameters)


def test_value_is_that_of_trace_elbo():
    torch.manual_seed(0)
    cg = gaussian_model()
    path, _ = gradients(cg, PathGradientELBO(), 32)
    plain, _ = gradients(cg, Trace_ELBO(), 32)
    torch.testing.assert_close(path, plain)


def test_gradient_is_unbiased():
    torch.manual_seed(0)
    cg = gaussian_model().double()
    _, path = gradients(cg, PathGradientELBO(), 400_000)
    _, plain = gradients(cg, Trace_ELBO(), 400_000)
    path, plain = (torch.cat([g.flatten() for g in parts]) for parts in (path, plain))
    assert ((path - plain).norm() / plain.norm()).item() < 0.01


def recommended_model():
    """A mixture latent with couplings, away from where it starts."""
    torch.manual_seed(0)
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    cg = CoarseGrainedModel.from_basins(
        target, IdentityCoordinates(2), latent_dim=1, n_couplings=2, hidden=(8,), n_modes=2
    ).double()
    with torch.no_grad():
        for parameter in cg.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return cg


def test_gradient_is_unbiased_for_the_recommended_model():
    cg = recommended_model()
    _, path = gradients(cg, PathGradientELBO(), 100_000)
    _, plain = gradients(cg, Trace_ELBO(), 100_000)
    n_guide = len(list(cg.guide.parameters()))
    torch.testing.assert_close(path[n_guide:], plain[n_guide:])  # the encoder: the same draws
    path, plain = (torch.cat([g.flatten() for g in part[:n_guide]]) for part in (path, plain))
    assert ((path - plain).norm() / plain.norm()).item() < 0.03


def test_noise_vanishes_where_the_guide_is_exact():
    cg = solved_model()
    decoder = list(cg.decoder.parameters())
    for loss, noisy in ((PathGradientELBO(), False), (Trace_ELBO(), True)):
        torch.manual_seed(0)
        parts = torch.autograd.grad(loss(cg.model, cg.guide)(16), decoder)
        assert (max(float(g.abs().max()) for g in parts) > 1e-3) == noisy


def test_svi_steps_with_path_gradients():
    torch.manual_seed(0)
    cg = gaussian_model()
    before = [p.clone() for p in cg.parameters()]
    svi = SVI(cg.model, cg.guide, pyro.optim.Adam({"lr": 1e-2}), loss=PathGradientELBO())
    for _ in range(3):  # layers behind a zero output learn from the second on
        svi.step(8)
    assert all(not torch.equal(a, b) for a, b in zip(before, cg.parameters(), strict=True))
    assert len(pyro.get_param_store()) == 0


def test_a_layer_with_two_names_in_the_guide_stays_trainable():
    class Shared(GaussianDecoder):
        def forward(self, z):
            return super().forward(self.layer(z))

    class SharedPrior(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self):
            return dist.Normal(self.layer.bias, 1.0).to_event(1)

    torch.manual_seed(0)
    circular = IdentityCoordinates(2).circular
    decoder = Shared(circular, 1, (8,))
    decoder.layer = nn.Linear(1, 1)
    prior, encoder = SharedPrior(decoder.layer), GaussianEncoder(circular, 1, (8,))
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    cg = CoarseGrainedModel(target, IdentityCoordinates(2), prior, decoder, encoder)
    before = list(cg.parameters())
    path, of_path = gradients(cg, PathGradientELBO(), 100_000)
    plain, of_plain = gradients(cg, Trace_ELBO(), 100_000)
    assert all(a is b for a, b in zip(before, cg.parameters(), strict=True))
    torch.testing.assert_close(path, plain)
    bias = next(i for i, p in enumerate(cg.guide.parameters()) if p is decoder.layer.bias)
    torch.testing.assert_close(of_path[bias], of_plain[bias], rtol=0.05, atol=0.02)


def test_function_guides_and_score_functions_are_refused():
    cg = gaussian_model()
    with pytest.raises(TypeError, match="expected a guide that is a torch module"):
        PathGradientELBO().differentiable_loss(cg.model, lambda n: None, 4)

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(2))

        def forward(self, n):
            with pyro.plate("samples", n):
                pyro.sample("k", dist.Categorical(logits=self.logits))

    with pytest.raises(ValueError, match="expected reparametrised samples at guide site 'k'"):
        PathGradientELBO().differentiable_loss(Learned(), Learned(), 4)


# ForwardKLELBO


class NormalGuide(nn.Module):
    """x ~ N(m, s)."""

    def __init__(self, loc=0.5, log_scale=0.3):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc).double())
        self.log_scale = nn.Parameter(torch.tensor(log_scale).double())

    def forward(self, n):
        pyro.module("guide", self)
        with pyro.plate("samples", n):
            return pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()))


def normal_target(n):
    """The standard normal, with Z = 1."""
    zero = torch.zeros((), dtype=torch.float64)
    with pyro.plate("samples", n):
        x = pyro.sample("x", dist.Normal(zero, 1.0).mask(False))
        pyro.factor("target", dist.Normal(zero, 1.0).log_prob(x))


def two_wells(n):
    """Normal densities of width 1 at -4 and 4."""
    loc = torch.tensor([-4.0, 4.0], dtype=torch.float64)
    wells = dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), dist.Normal(loc, 1.0))
    with pyro.plate("samples", n):
        x = pyro.sample("x", dist.Normal(loc[0], 1.0).mask(False))
        pyro.factor("target", wells.log_prob(x))


def test_forward_kl_and_its_gradient_are_those_of_normal_densities():
    """KL(N(0, 1) || N(m, s)) = log s + (1 + m²) / (2 s²) - 1/2."""
    torch.manual_seed(0)
    guide = NormalGuide()
    m, log_s = guide.loc.detach().clone(), guide.log_scale.detach().clone()
    exact = [v.requires_grad_() for v in (m, log_s)]
    kl = log_s + 0.5 * (1 + m**2) * torch.exp(-2 * log_s) - 0.5
    n = 400_000
    loss = ForwardKLELBO().differentiable_loss(normal_target, guide, n) / n
    found = torch.autograd.grad(loss, list(guide.parameters()))
    assert loss.item() == pytest.approx(kl.item(), abs=0.01)
    for gradient, expected in zip(found, torch.autograd.grad(kl, exact), strict=True):
        assert gradient.item() == pytest.approx(expected.item(), abs=0.02)


def test_forward_kl_covers_both_wells_where_the_reverse_covers_one():
    scales = {}
    for loss, log_scale in ((ForwardKLELBO(), 1.0), (Trace_ELBO(), 0.0)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = NormalGuide(loc=1.0, log_scale=log_scale)
        svi = SVI(two_wells, guide, pyro.optim.Adam({"lr": 0.02}), loss)
        for _ in range(400):
            svi.step(256)
        scales[type(loss)] = guide.log_scale.exp().item()
    assert scales[ForwardKLELBO] == pytest.approx(17**0.5, abs=0.3)  # that of the mixture
    assert scales[Trace_ELBO] < 1.5


def test_forward_kl_is_an_upper_bound_and_the_elbo_a_lower_one():
    torch.manual_seed(0)
    cg = gaussian_model()
    upper = ForwardKLELBO()(cg.model, cg.guide)(100_000).item() / 100_000
    lower = -Trace_ELBO()(cg.model, cg.guide)(100_000).item() / 100_000
    assert lower < DoubleWell().log_z() < upper + 0.05


def test_forward_kl_gives_the_encoder_the_gradient_of_the_elbo():
    torch.manual_seed(0)
    cg = gaussian_model().double()
    encoder = list(cg.encoder.parameters())
    found, expected = (
        torch.autograd.grad(seeded(cg, loss) / 1000, encoder)
        for loss in (ForwardKLELBO(), Trace_ELBO())
    )
    torch.testing.assert_close(found, expected)


def seeded(cg, loss):
    torch.manual_seed(1)
    return loss(cg.model, cg.guide)(1000)


def test_forward_kl_refuses_sites_outside_the_plate():
    def guide(n):
        pyro.sample("theta", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="one plate"):
        ForwardKLELBO().differentiable_loss(guide, guide, 3)


# AnalyticEntropyELBO


class LinearGuide(nn.Module):
    """z ~ N(0, 1), u ~ N(w z + b, s²) in a plate: all in closed form."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7).double())
        self.b = nn.Parameter(torch.tensor(-0.4).double())
        self.log_s = nn.Parameter(torch.tensor(-0.2).double())

    def forward(self, n):
        pyro.module("linear", self)
        with pyro.plate("samples", n):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            return pyro.sample("u", dist.Normal(self.w * z + self.b, self.log_s.exp()))


def linear_target(n):
    """exp(-u²/2) and an encoder z ~ N(u/2, 1)."""
    zero = torch.zeros((), dtype=torch.float64)
    with pyro.plate("samples", n):
        u = pyro.sample("u", dist.Normal(zero, 1.0).mask(False))
        pyro.factor("boltzmann", -0.5 * u.square())
        pyro.sample("z", dist.Normal(0.5 * u, 1.0))


def linear_elbo(w, b, log_s):
    """Of the pair above: E[-u²/2 - (z - u/2)²/2 - log(2π)/2] and entropies of z and u given z."""
    s2 = torch.exp(2 * log_s)
    second = w**2 + b**2 + s2
    miss = (1 - w / 2) ** 2 + (b**2 + s2) / 4
    two_pi = torch.tensor(2 * torch.pi).double().log()
    return -0.5 * second - 0.5 * miss - 0.5 * two_pi + (1 + two_pi) + log_s


def test_analytic_entropy_is_exact_for_a_linear_normal_pair():
    torch.manual_seed(0)
    guide, n = LinearGuide(), 400_000
    exact = [p.detach().clone().requires_grad_() for p in (guide.w, guide.b, guide.log_s)]
    expected = linear_elbo(*exact)
    value = -AnalyticEntropyELBO().differentiable_loss(linear_target, guide, n) / n
    assert value.item() == pytest.approx(expected.item(), abs=0.006)
    found = torch.autograd.grad(value, list(guide.parameters()))
    for gradient, known in zip(found, torch.autograd.grad(expected, exact), strict=True):
        assert gradient.item() == pytest.approx(known.item(), abs=0.01)


def test_analytic_entropy_has_the_gradients_of_trace_elbo_draw_by_draw_for_normal_guides():
    torch.manual_seed(0)
    cg = gaussian_model().double()
    value, analytic = gradients(cg, AnalyticEntropyELBO(), 16)
    plain_value, plain = gradients(cg, Trace_ELBO(), 16)
    assert value.item() != pytest.approx(plain_value.item(), abs=1e-3)
    torch.testing.assert_close(analytic, plain)


def test_analytic_entropy_values_are_noisy_where_log_weights_are_constant():
    torch.manual_seed(0)
    cg = solved_model()
    spread = {}
    for loss in (AnalyticEntropyELBO(), Trace_ELBO(), PathGradientELBO()):
        values = torch.stack([gradients(cg, loss, 8, seed)[0].detach() for seed in range(40)])
        spread[type(loss)] = values.std()
        assert values.mean().item() == pytest.approx(
            -cg.target.energy.log_z(), abs=max(1e-9, 4 * values.std().item() / 40**0.5)
        )
    assert spread[Trace_ELBO] < 1e-9  # every log weight of the exact model is log Z
    assert spread[AnalyticEntropyELBO] > 0.1


def circular_model(prior=None):
    """Couplings, a Möbius map and a mixture latent, away from where they start."""
    torch.manual_seed(0)
    cg = rotor_model(1.5)
    circular = cg.coordinates.circular
    cg.guide.decoder = CouplingDecoder(circular, 1, n_couplings=2, hidden=(8,))
    cg.guide.prior = prior or cg.guide.prior
    with torch.no_grad():
        for parameter in cg.guide.decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        cg.guide.decoder.log_scale.fill_(0.5)  # so wide that the circle matters
    return cg.double()


def test_analytic_entropy_is_unbiased_for_couplings_and_circles():
    cg, n = circular_model(), 60_000
    value, analytic = gradients(cg, AnalyticEntropyELBO(), n)
    plain_value, plain = gradients(cg, Trace_ELBO(), n)
    assert value.item() == pytest.approx(plain_value.item(), abs=0.04)
    analytic, plain = (torch.cat([g.flatten() for g in part]) for part in (analytic, plain))
    assert not torch.allclose(analytic, plain)
    assert ((analytic - plain).norm() / plain.norm()).item() < 0.03


def test_analytic_entropy_of_the_recommended_model():
    cg = recommended_model()
    value, analytic = gradients(cg, AnalyticEntropyELBO(), 20_000)
    plain_value, plain = gradients(cg, Trace_ELBO(), 20_000)
    torch.testing.assert_close(analytic, plain)  # all noise is normal
    assert value.item() == pytest.approx(plain_value.item(), abs=0.1)


def test_analytic_entropy_trains():
    pyro.clear_param_store()
    torch.manual_seed(0)
    cg = gaussian_model()
    svi = SVI(cg.model, cg.guide, pyro.optim.Adam({"lr": 1e-2}), loss=AnalyticEntropyELBO())
    before = svi.evaluate_loss(2000)
    for _ in range(60):
        svi.step(32)
    assert svi.evaluate_loss(2000) < before - 500.0
    assert len(pyro.get_param_store()) == 0


def test_analytic_entropy_keeps_scales():
    torch.manual_seed(0)
    guide, scaled = LinearGuide(), poutine.scale
    losses = []
    for factor in (1.0, 3.0):
        torch.manual_seed(1)
        pair = (scaled(linear_target, factor), scaled(guide, factor))
        losses.append(AnalyticEntropyELBO().differentiable_loss(*pair, 10))
    torch.testing.assert_close(losses[1], 3 * losses[0])


def test_analytic_entropy_refuses_what_has_no_closed_form():
    mixture = GaussianMixturePrior(1, 3)
    cg = circular_model(mixture)
    with pytest.raises(ValueError, match="closed form, got MixtureOfDiagNormals"):
        AnalyticEntropyELBO()(cg.model, cg.guide)(4)
