import math
from itertools import pairwise

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from toy_models import roughened

from pyrocg.decoders import CouplingDecoder, GaussianDecoder
from pyrocg.distributions import moebius
from pyrocg.networks import ConstantOutput

F64 = torch.float64
CIRCULAR = torch.tensor([False, True, False, True, False])


def coupling_decoder(n_components=3, circular=CIRCULAR, latent_dim=2, **options):
    torch.manual_seed(2)
    decoder = CouplingDecoder(circular, latent_dim, n_components, 3, (8,), (6,), **options).double()
    groups, n = max(1, n_components), len(circular)
    root = torch.eye(n) + 0.4 * torch.randn(groups, n, n, dtype=F64)
    loadings = 0.3 * torch.randn(groups, latent_dim, n, dtype=F64)
    decoder.start_linear(torch.randn(groups, n, dtype=F64), loadings, root @ root.mT)
    return roughened(decoder)


CASES = {
    "mixed": (3, CIRCULAR, {}),
    "no components": (0, CIRCULAR, {}),
    "real only": (2, torch.zeros(4, dtype=torch.bool), {}),
    "one real": (2, torch.tensor([False, True]), {}),
    "circular only": (2, torch.ones(3, dtype=torch.bool), {}),
    "embedding": (3, CIRCULAR, {"embedding": 2}),
    "chain": (3, CIRCULAR, {"chain": torch.tensor([3]), "labels": torch.randn(3, 2)}),
    "whole chain": (0, torch.ones(3, dtype=torch.bool), {"chain": torch.tensor([1, 2, 0])}),
}


@pytest.fixture(params=CASES)
def conditional(request):
    """A coupling decoder's distribution given 6 latents."""
    n_components, circular, options = CASES[request.param]
    decoder = coupling_decoder(n_components, circular, **options)
    k = torch.arange(6) % n_components if n_components else None
    return decoder(torch.randn(6, 2, dtype=F64), k)


# CouplingDecoder


def test_density_of_a_draw_is_that_of_the_inverse(conditional):
    torch.manual_seed(0)
    u = conditional.rsample()
    with_the_draw = conditional.log_prob(u)
    torch.testing.assert_close(conditional.log_prob(u.clone()), with_the_draw)
    assert with_the_draw.shape == (6,)


def test_both_densities_have_the_same_gradients(conditional):
    torch.manual_seed(0)
    u = conditional.rsample()
    parameters = [p for p in conditional.decoder.parameters() if p.numel()]
    first, second = (
        torch.autograd.grad(
            conditional.log_prob(v).sum(), parameters, retain_graph=True, materialize_grads=True
        )
        for v in (u, u.clone())
    )
    torch.testing.assert_close(first, second)


def noise_to_u(decoder, z, k, noise):
    """The map of the formula, written out again from the decoder's parts, without wrapping."""
    n_circular = len(decoder.circular_index)
    tau = noise[:0]
    for block, (first, last) in enumerate(pairwise(decoder.edges)):
        torsions = decoder.torsions(z, k, tau, block)
        step = moebius(torsions.scale * noise[first:last], torsions.omega)[0]
        tau = torch.cat([tau, torsions.loc + step])
    xi, condition = noise[n_circular:], decoder.condition(tau, z, k)
    for coupling in decoder.couplings:
        xi, _ = coupling(xi, condition)
    v = decoder.conditional_centre(tau, z, k) + decoder.scale_tril[k] @ xi
    return torch.cat([tau, v])[decoder.order]


@pytest.mark.parametrize("chain", [[], [3], [3, 1]])
def test_density_is_that_of_the_noise_over_the_jacobian(chain):
    decoder = coupling_decoder(chain=torch.tensor(chain, dtype=torch.long))
    with torch.no_grad():  # narrow, so that one image of the wrapped normal is all of it
        decoder.log_scale.fill_(-3.0)
    z, k = torch.randn(2, dtype=F64), torch.tensor(1)
    noise = torch.randn(len(CIRCULAR), dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda e: noise_to_u(decoder, z, k, e), noise)
    normal = -0.5 * (noise.square() + math.log(2 * math.pi)).sum()
    expected = normal - torch.linalg.slogdet(jacobian).logabsdet
    u = noise_to_u(decoder, z, k, noise)
    torch.testing.assert_close(decoder(z[None], k[None]).log_prob(u[None])[0], expected)


def test_a_large_moebius_parameter_is_finite_in_single_precision():
    decoder = coupling_decoder().float()
    with torch.no_grad():
        decoder.torsion_networks[0].layers[-1].bias.fill_(1e5)
    u = (drawn := decoder(torch.zeros(1000, 2), torch.zeros(1000, dtype=torch.long))).rsample()
    assert bool(drawn.log_prob(u).isfinite().all())


def test_density_integrates_to_one():
    decoder = coupling_decoder(2, torch.tensor([False, True]), latent_dim=1)
    angle = torch.linspace(-math.pi, math.pi, 401, dtype=F64)[:-1]
    real = torch.linspace(-40, 40, 4001, dtype=F64)
    grid = torch.cartesian_prod(real, angle)
    k = torch.ones(len(grid), dtype=torch.long)
    log_prob = decoder(torch.full((len(grid), 1), 0.4, dtype=F64), k).log_prob(grid)
    cell = (2 * math.pi / 400) * (80 / 4000)
    assert log_prob.exp().sum().item() * cell == pytest.approx(1.0, abs=1e-4)


def test_density_is_periodic_where_circular(conditional):
    u = conditional.sample()
    turn = 2 * math.pi * torch.zeros_like(u).index_fill(-1, conditional.decoder.circular_index, 1.0)
    torch.testing.assert_close(conditional.log_prob(u + turn), conditional.log_prob(u.clone()))


def linear_gaussian(latent_dim=2, n=5, seed=0):
    """Narrow, so that sines are linear and nothing wraps; circular coordinates independent."""
    generator = torch.Generator().manual_seed(seed)
    root = 0.02 * torch.randn(2, n, n, dtype=F64, generator=generator)
    covariance = root @ root.mT + 1e-4 * torch.eye(n, dtype=F64)
    covariance[:, 1, 3] = covariance[:, 3, 1] = 0.0
    mean = torch.randn(2, n, dtype=F64, generator=generator)
    loadings = 0.02 * torch.randn(2, latent_dim, n, dtype=F64, generator=generator)
    return mean, loadings, covariance


def test_start_linear_is_the_gaussian_density():
    """Exactly that where no coordinate is circular."""
    mean, loadings, covariance = linear_gaussian()
    decoder = CouplingDecoder(torch.zeros(5, dtype=torch.bool), 2, 2, 4, (8,)).double()
    decoder.start_linear(mean, loadings, covariance)
    z, k = torch.randn(20, 2, dtype=F64), torch.arange(20) % 2
    exact = torch.distributions.MultivariateNormal(
        mean[k] + (z[:, None] @ loadings[k])[:, 0], covariance[k]
    )
    u = exact.sample()
    torch.testing.assert_close(decoder(z, k).log_prob(u), exact.log_prob(u))


def test_start_linear_has_the_right_moments_with_circular_coordinates():
    mean, loadings, covariance = linear_gaussian()
    decoder = CouplingDecoder(CIRCULAR, 2, 2, 4, (8,)).double()
    decoder.start_linear(mean, loadings, covariance)
    torch.manual_seed(0)
    for k in range(2):
        z = torch.randn(200_000, 2, dtype=F64)
        u = decoder(z, torch.full((200_000,), k)).sample()
        total = covariance[k] + loadings[k].T @ loadings[k]
        torch.testing.assert_close(u.mean(0), mean[k], atol=5e-4, rtol=0)
        torch.testing.assert_close(u.T.cov(), total, atol=3e-5, rtol=0.02)
        given_z = u[:, CIRCULAR] - z @ loadings[k][:, CIRCULAR]
        expected = covariance[k].diagonal()[CIRCULAR].diag()
        torch.testing.assert_close(given_z.T.cov(), expected, atol=1e-5, rtol=0.02)


def test_torsions_of_a_chain_start_with_their_correlations():
    mean, loadings, covariance = linear_gaussian()
    covariance[:, 1, 3] = covariance[:, 3, 1] = (
        0.6 * (covariance[:, 1, 1] * covariance[:, 3, 3]) ** 0.5
    )
    covariance = covariance + 1e-3 * torch.eye(5, dtype=F64)
    decoder = CouplingDecoder(CIRCULAR, 2, 2, 4, (8,), chain=torch.tensor([3, 1])).double()
    decoder.start_linear(mean, loadings, covariance)
    torch.manual_seed(0)
    z, k = torch.randn(200_000, 2, dtype=F64), torch.ones(200_000, dtype=torch.long)
    u = decoder(z, k).sample()
    marginal = covariance[1] + loadings[1].T @ loadings[1]
    torch.testing.assert_close(u.mean(0), mean[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(u.T.cov(), marginal, atol=6e-5, rtol=0.03)


@pytest.mark.parametrize("chain", [[0], [1, 1]])
def test_a_chain_is_of_different_circular_coordinates(chain):
    with pytest.raises(ValueError, match="expected a chain of different circular coordinates"):
        CouplingDecoder(CIRCULAR, 2, 2, chain=torch.tensor(chain))


def test_an_embedding_tells_alike_components_apart():
    alike = {"labels": torch.zeros(2, 1), "embedding": 3}
    decoder = roughened(CouplingDecoder(CIRCULAR, 2, 2, 4, (8,), **alike)).double()
    z, u = torch.zeros(2, 2, dtype=F64), torch.full((2, 5), 0.3, dtype=F64)
    first, second = decoder(z, torch.tensor([0, 1])).log_prob(u).tolist()
    assert abs(first - second) > 1e-6
    with pytest.raises(ValueError, match="expected components for an embedding of 3 numbers"):
        CouplingDecoder(CIRCULAR, 2, embedding=3)


def test_many_samples_of_few_components_give_what_one_sample_gives():
    """The components' matrices are applied in another way there."""
    torch.manual_seed(5)
    circular = torch.arange(20) == 4
    decoder = roughened(CouplingDecoder(circular, 2, 3, 2, (8,))).double()
    root = torch.eye(20) + 0.2 * torch.randn(3, 20, 20, dtype=F64)
    decoder.start_linear(torch.zeros(3, 20), torch.zeros(3, 2, 20), root @ root.mT)
    z, k = torch.randn(6, 100, 2, dtype=F64), torch.randint(3, (6, 100))
    u = decoder(z, k).rsample().detach().requires_grad_()
    together = decoder(z, k).log_prob(u)
    (gradient,) = torch.autograd.grad(together.sum(), u)
    alone = torch.stack([decoder(z[5, i], k[5, i]).log_prob(u[5, i]) for i in range(100)])
    torch.testing.assert_close(together[5], alone)
    torch.testing.assert_close(gradient[5], torch.autograd.grad(alone.sum(), u)[0][5])
    assert decoder(z[:0], k[:0]).rsample().shape == (0, 100, 20)


def test_samples_of_all_components_and_batches():
    decoder = coupling_decoder()
    d = decoder(torch.zeros(4, 2, dtype=F64), torch.zeros(4, dtype=torch.long))
    assert d.rsample((7,)).shape == (7, 4, 5)
    assert d.expand([3, 4]).log_prob(torch.zeros(3, 4, 5, dtype=F64)).shape == (3, 4)
    assert d.expand([4]) is d


def test_coupling_decoder_in_a_plate_with_validation():
    decoder = coupling_decoder(0)

    def program():
        with pyro.plate("samples", 8):
            return pyro.sample("u", decoder(torch.zeros(8, 2, dtype=F64)))

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    assert trace.nodes["u"]["log_prob"].shape == (8,)


def test_coupling_decoder_wants_components_exactly_if_it_has_some():
    z = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="expected components for a decoder with n_components=3"):
        CouplingDecoder(CIRCULAR, 2, 3)(z)
    with pytest.raises(ValueError, match="expected no components"):
        CouplingDecoder(CIRCULAR, 2, 0)(z, torch.zeros(3, dtype=torch.long))


def test_z_reaches_real_coordinates_through_the_torsions_only():
    decoder = coupling_decoder(0)
    z, tau = torch.randn(2, 2, dtype=F64), torch.randn(2, dtype=F64).expand(2, 2)
    k = torch.zeros(2, dtype=torch.long)
    condition, centre = decoder.condition(tau, z, k), decoder.conditional_centre(tau, z, k)
    assert torch.equal(condition[0], condition[1])
    assert torch.equal(centre[0], centre[1])


# GaussianDecoder


@pytest.mark.parametrize("variance", ["constant", "network"])
def test_gaussian_decoder_starts_at_its_variance(variance):
    decoder = GaussianDecoder(CIRCULAR, 2, variance=variance, initial_log_variance=-0.5)
    d = decoder(torch.randn(7, 2))
    assert (d.batch_shape, d.event_shape) == ((7,), (5,))
    torch.testing.assert_close(d.scale, torch.full((7, 5), math.exp(-0.25)))
    assert torch.equal(d.circular, CIRCULAR)


def test_gaussian_decoder_is_wrapped_where_circular():
    d = roughened(GaussianDecoder(CIRCULAR, 1)).double()(torch.randn(3, 1, dtype=F64))
    u = d.sample((100,))
    assert bool((u[..., CIRCULAR].abs() <= math.pi).all())
    turn = 2 * math.pi * CIRCULAR.double()
    torch.testing.assert_close(d.log_prob(u + turn), d.log_prob(u))


def test_gaussian_decoder_bounds_the_scale_of_angles_only():
    d = GaussianDecoder(CIRCULAR, 1, initial_log_variance=10.0)(torch.zeros(1, 1))
    assert d.scale[0, CIRCULAR].tolist() == [4.0, 4.0]
    assert d.scale[0, ~CIRCULAR].min() > 100


def test_gaussian_decoder_of_a_circular_latent_is_periodic():
    decoder = GaussianDecoder(CIRCULAR, 2, circular_latent=True).double()
    z = torch.randn(4, 2, dtype=F64)
    torch.testing.assert_close(decoder(z + 2 * math.pi).loc, decoder(z).loc)


def test_gaussian_decoder_refuses_other_variances():
    with pytest.raises(ValueError, match='expected "constant" or "network"'):
        GaussianDecoder(CIRCULAR, 1, variance="none")


# The paper's settings


def sizes(mlp):
    assert all(isinstance(layer, nn.Linear | nn.Tanh) for layer in mlp.layers)
    return [layer.out_features for layer in mlp.layers if isinstance(layer, nn.Linear)]


def test_paper_decoder_of_the_double_well():
    decoder = GaussianDecoder.paper(torch.zeros(2, dtype=torch.bool), 1, "double-well")
    assert sizes(decoder.mean) == sizes(decoder.log_variance) == [100, 100, 2]
    assert decoder(torch.zeros(3, 1)).event_shape == (2,)


def test_paper_decoder_of_alanine_dipeptide():
    decoder = GaussianDecoder.paper(torch.zeros(60, dtype=torch.bool), 2, "alanine-dipeptide")
    assert sizes(decoder.mean) == [100, 100, 100, 60]
    assert isinstance(decoder.log_variance, ConstantOutput)
    d = decoder(torch.randn(3, 2))
    torch.testing.assert_close(d.scale.square().log(), torch.full((3, 60), -0.5))


def test_paper_decoder_of_another_system_is_refused():
    with pytest.raises(ValueError, match='expected "double-well" or "alanine-dipeptide"'):
        GaussianDecoder.paper(CIRCULAR, 1, "pdb")
