import math

import pytest
import torch
from pyro import poutine
from torch import nn
from toy_models import roughened

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import BasinPartition, GaussianEncoder, MixtureEncoder, PartitionEncoder
from pyrocg.energies.toy import Harmonic
from pyrocg.networks import ConstantOutput
from pyrocg.priors import TorusPrior
from pyrocg.target import BoltzmannTarget
from pyrocg.weights import log_mean_exp

F64 = torch.float64
CIRCULAR = torch.tensor([False, True, False])


def encoders():
    return {
        "gaussian": roughened(GaussianEncoder(CIRCULAR, 1)),
        "gaussian, constant": roughened(GaussianEncoder(CIRCULAR, 1, variance="constant")),
        "mixture": roughened(MixtureEncoder(CIRCULAR, 1, n_modes=3, hidden=(8,))),
    }


@pytest.mark.parametrize("name", encoders())
def test_density_integrates_to_one_over_z(name):
    u = torch.randn(4, 3, dtype=F64)
    z = torch.linspace(-40, 40, 40_001, dtype=F64)[:, None, None]
    density = encoders()[name](u).log_prob(z).exp()
    assert density.shape == (40_001, 4)
    assert (density.sum(0) * 80 / 40_000).tolist() == pytest.approx([1.0] * 4, abs=1e-6)


def on_the_torus():
    return {
        "gaussian": roughened(GaussianEncoder(CIRCULAR, 1, circular_latent=True)),
        "mixture": roughened(MixtureEncoder(CIRCULAR, 1, 3, (8,), circular_latent=True)),
        "wide": roughened(
            GaussianEncoder(CIRCULAR, 1, initial_log_variance=9.0, circular_latent=True)
        ),
    }


@pytest.mark.parametrize("name", on_the_torus())
def test_density_on_a_torus_integrates_to_one_and_is_periodic(name):
    u = torch.randn(4, 3, dtype=F64)
    z = torch.linspace(-math.pi, math.pi, 2001, dtype=F64)[:-1, None, None]
    r = on_the_torus()[name](u)
    density = r.log_prob(z).exp()
    assert (density.mean(0) * 2 * math.pi).tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    torch.testing.assert_close(r.log_prob(z + 2 * math.pi), r.log_prob(z))
    assert r.sample((1000,)).abs().max() <= math.pi


@pytest.mark.parametrize("circular_latent", [True, False])
def test_weights_on_a_torus_have_the_mean_z_with_a_density_on_the_torus(circular_latent):
    """The decoder is exact and knows no z, so that weights are those of z alone."""
    torch.manual_seed(0)
    energy, real = Harmonic(1), torch.zeros(1, dtype=torch.bool)
    encoder = GaussianEncoder(real, 1, initial_log_variance=2.0, circular_latent=circular_latent)
    decoder = GaussianDecoder(real, 1, variance="constant", initial_log_variance=0.0)
    with torch.no_grad():
        for module in (decoder.mean, encoder.mean):
            module.layers[-1].weight.zero_()
            module.layers[-1].bias.zero_()
    target, coordinates = BoltzmannTarget(energy, beta=1.0), IdentityCoordinates(1)
    cg = CoarseGrainedModel(target, coordinates, TorusPrior(1), decoder, encoder)
    log_w = cg.sample(20_000).log_weights.double()
    inside = 0.0 if circular_latent else math.log(math.erf(math.pi / math.sqrt(2 * math.exp(2.0))))
    expected = energy.log_z() + inside
    assert log_mean_exp(log_w).item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", encoders())
def test_encoder_is_periodic_where_circular(name):
    encoder, u = encoders()[name], torch.randn(4, 3, dtype=F64)
    z = torch.randn(4, 1, dtype=F64)
    shifted = encoder(u + 2 * math.pi * CIRCULAR.double())
    torch.testing.assert_close(shifted.log_prob(z), encoder(u).log_prob(z))


def test_gaussian_encoder_starts_at_its_variance():
    d = GaussianEncoder(CIRCULAR, 2, initial_log_variance=-1.0)(torch.randn(3, 3))
    torch.testing.assert_close(d.base_dist.scale, torch.full((3, 2), math.exp(-0.5)))


def test_mixture_encoder_of_one_component_ignores_the_others():
    """Each component has its own linear map; batches of components mix freely."""
    encoder = roughened(MixtureEncoder(CIRCULAR, 2, 2, (8,), n_components=3))
    u, z = torch.randn(6, 3, dtype=F64), torch.randn(6, 2, dtype=F64)
    k = torch.arange(6) % 3
    one_by_one = [encoder(u[i : i + 1], k[i : i + 1]).log_prob(z[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(encoder(u, k).log_prob(z), torch.cat(one_by_one))


def linear_decoder(latent_dim, n=5):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, n, dtype=F64, generator=generator)
    loadings = torch.randn(2, latent_dim, n, dtype=F64, generator=generator)
    root = torch.randn(2, n, n, dtype=F64, generator=generator)
    return mean, loadings, 0.3 * root @ root.mT + 0.1 * torch.eye(n, dtype=F64)


def exact_posterior(u, mean, loadings, residual):
    """From the joint Gaussian of (z, u), not from the formula of the encoder."""
    covariance = loadings.T @ loadings + residual
    gain = torch.linalg.solve(covariance, loadings.T).T
    return (u - mean) @ gain.T, torch.eye(len(loadings), dtype=F64) - gain @ loadings.T


def test_start_posterior_is_exact_for_a_linear_decoder():
    mean, loadings, covariance = linear_decoder(latent_dim=1)
    real = torch.zeros(5, dtype=torch.bool)
    encoder = MixtureEncoder(real, 1, n_modes=1, hidden=(8,), n_components=2).double()
    encoder.start_posterior(mean, loadings, covariance)
    u, z = torch.randn(20, 5, dtype=F64), torch.randn(20, 1, dtype=F64)
    for k in range(2):
        centre, spread = exact_posterior(u, mean[k], loadings[k], covariance[k])
        expected = torch.distributions.Normal(centre, spread.sqrt()).log_prob(z)[:, 0]
        found = encoder(u, torch.full((20,), k)).log_prob(z)
        torch.testing.assert_close(found, expected)


def test_start_posterior_has_the_exact_mean_and_variances_in_more_dimensions():
    mean, loadings, covariance = linear_decoder(latent_dim=3)
    real = torch.zeros(5, dtype=torch.bool)
    encoder = MixtureEncoder(real, 3, n_modes=1, hidden=(8,), n_components=2).double()
    encoder.start_posterior(mean, loadings, covariance)
    u = torch.randn(7, 5, dtype=F64)
    centre, spread = exact_posterior(u, mean[1], loadings[1], covariance[1])
    d = encoder(u, torch.ones(7, dtype=torch.long))
    torch.testing.assert_close(d.mean, centre)
    torch.testing.assert_close(d.variance, spread.diagonal().expand(7, 3))


def test_encoder_reads_its_columns_only():
    mean, loadings, covariance = linear_decoder(latent_dim=1)
    columns = torch.tensor([0, 3])
    encoder = MixtureEncoder(torch.zeros(5, dtype=torch.bool), 1, 1, (8,), 2, columns).double()
    encoder.start_posterior(mean, loadings, covariance)
    u = torch.randn(6, 5, dtype=F64)
    block = covariance[0][columns][:, columns]
    centre, _ = exact_posterior(u[:, columns], mean[0, columns], loadings[0][:, columns], block)
    torch.testing.assert_close(encoder(u, torch.zeros(6, dtype=torch.long)).mean, centre)


def test_start_posterior_is_exact_near_the_mean_where_circular():
    mean, loadings, covariance = linear_decoder(latent_dim=1, n=3)
    encoder = MixtureEncoder(CIRCULAR, 1, 1, (8,), 2).double()
    encoder.start_posterior(mean, loadings, covariance)
    u = mean[0] + 1e-4 * torch.randn(6, 3, dtype=F64)
    centre, _ = exact_posterior(u, mean[0], loadings[0], covariance[0])
    found = encoder(u + 2 * math.pi * CIRCULAR.double(), torch.zeros(6, dtype=torch.long)).mean
    torch.testing.assert_close(found, centre, atol=1e-10, rtol=1e-5)


def test_modes_start_apart_around_the_posterior():
    encoder = MixtureEncoder(CIRCULAR, 2, n_modes=4)
    assert encoder.mode_shift.mean(0).abs().max().item() < 1e-7
    assert encoder.mode_shift.std().item() > 0.02


# The partition into basins


def partition():
    centres = torch.tensor([[0.0, 1.0], [3.0, -1.0], [-2.0, 0.0]], dtype=F64)
    return BasinPartition(centres, torch.tensor([1, 2]), CIRCULAR, torch.tensor([2.0, 0.5]))


def test_partition_is_one_of_unity_and_periodic():
    u = 3 * torch.randn(50, 3, dtype=F64)
    probs = partition()(u).probs
    assert probs.shape == (50, 3)
    torch.testing.assert_close(probs.sum(-1), torch.ones(50, dtype=F64))
    torch.testing.assert_close(partition()(u + 2 * math.pi * CIRCULAR.double()).probs, probs)


def test_partition_is_the_formula():
    u = torch.tensor([[9.0, 0.5, 0.3]], dtype=F64)
    scores = [
        2.0 * math.cos(0.5 - a) - 0.5 * 0.5 * (0.3 - b) ** 2
        for a, b in [(0.0, 1.0), (3.0, -1.0), (-2.0, 0.0)]
    ]
    expected = torch.tensor(scores, dtype=F64).softmax(0)
    torch.testing.assert_close(partition()(u).probs[0], expected)


def test_partition_refuses_wrong_shapes_and_concentrations():
    centres = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="expected centres of shape"):
        BasinPartition(centres, torch.tensor([0, 1]), CIRCULAR)
    with pytest.raises(ValueError, match="expected concentrations > 0"):
        BasinPartition(centres, torch.tensor([0]), CIRCULAR, 0.0)


def test_partition_encoder_draws_component_and_z():
    encoder = PartitionEncoder(partition(), roughened(MixtureEncoder(CIRCULAR, 2, 2, (8,), 3)))
    u = torch.randn(5, 3, dtype=F64)
    trace = poutine.trace(encoder).get_trace(u)
    trace.compute_log_prob()
    assert trace.nodes["component"]["log_prob"].shape == (5,)
    assert trace.nodes["z"]["value"].shape == (5, 2)


# The paper's settings


def kinds(mlp):
    return [type(layer) for layer in mlp.layers if not isinstance(layer, nn.Linear)]


def sizes(mlp):
    return [layer.out_features for layer in mlp.layers if isinstance(layer, nn.Linear)]


def test_paper_encoder_of_the_double_well():
    encoder = GaussianEncoder.paper(torch.zeros(2, dtype=torch.bool), 1, "double-well")
    for mlp in (encoder.mean, encoder.log_variance):
        assert sizes(mlp) == [100, 100, 100, 1]
        assert kinds(mlp) == [nn.SELU, nn.Tanh, nn.Tanh]
    assert encoder(torch.zeros(3, 2)).event_shape == (1,)


def test_paper_encoder_of_alanine_dipeptide():
    encoder = GaussianEncoder.paper(torch.zeros(60, dtype=torch.bool), 2, "alanine-dipeptide")
    assert sizes(encoder.mean) == [150, 150, 150, 2]
    assert kinds(encoder.mean) == [nn.SELU, nn.SELU, nn.LogSigmoid]
    assert isinstance(encoder.log_variance, ConstantOutput)
    d = encoder(torch.randn(3, 60))
    torch.testing.assert_close(d.variance.log(), torch.full((3, 2), -1.0))


def test_paper_encoder_of_another_system_is_refused():
    with pytest.raises(ValueError, match='expected "double-well" or "alanine-dipeptide"'):
        GaussianEncoder.paper(CIRCULAR, 1, "pdb")


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8, 8, 8)])
def test_layers_of_any_number_have_activations(hidden):
    layers = GaussianEncoder(CIRCULAR, 1, hidden).mean.layers
    kinds = [type(layer) for layer in layers if not isinstance(layer, nn.Linear)]
    assert kinds == [nn.SELU, *[nn.Tanh] * 3][: len(hidden)]
