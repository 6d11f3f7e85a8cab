"""CUDA tensors in and out, and the numbers of the CPU. Skipped where there is no CUDA device."""

import copy

import pytest
import torch
from pyro.infer import Trace_ELBO
from small_molecules import MOLECULES, alanine_dipeptide

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import CartesianCoordinates, IdentityCoordinates, InternalCoordinates
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.copies import CopiesEnergy
from pyrocg.energies.openmm import OpenMMEnergy, gpu_platform
from pyrocg.energies.toy import DoubleWell, GaussianMixture, Harmonic, ManyWell, MuellerBrown
from pyrocg.molecules import peptide
from pyrocg.objectives import PathGradientELBO
from pyrocg.priors import FlowPrior, GaussianMixturePrior, StandardNormalPrior, TorusPrior
from pyrocg.target import BoltzmannTarget

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

F64 = torch.float64
TOYS = {
    "harmonic": lambda: Harmonic(2, [1.0, 4.0], 0.5),
    "mixture": lambda: GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.5, 1.0]),
    "double well": DoubleWell,
    "many well": lambda: ManyWell(4),
    "mueller-brown": MuellerBrown,
}


def energy_and_gradient(energy, x):
    x = x.detach().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.device == gradient.device == x.device
    return value, gradient


def agree(on_cpu, on_cuda, **tolerances):
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(b.cpu(), a, **tolerances)


@pytest.mark.parametrize("name", TOYS)
def test_toy_energies(name):
    torch.manual_seed(0)
    energy = TOYS[name]()
    x = torch.randn(20, energy.dim, dtype=F64)
    on_cpu = energy_and_gradient(energy, x)
    agree(on_cpu, energy_and_gradient(copy.deepcopy(energy).cuda(), x.cuda()))


@pytest.mark.parametrize(
    "engine",
    [
        CompiledEnergy,
        lambda m: OpenMMEnergy(m, platform="Reference"),
        lambda m: CopiesEnergy(m, "Reference", copies=8),
    ],
    ids=["torch", "omm", "copies"],
)
def test_molecular_energies(engine):
    torch.manual_seed(0)
    molecule = alanine_dipeptide()
    energy = engine(molecule)
    x = torch.tensor(molecule.positions)
    x = x + 0.002 * torch.randn(8, *x.shape, dtype=F64)
    on_cpu = energy_and_gradient(energy, x)
    agree(on_cpu, energy_and_gradient(energy.cuda(), x.cuda()), rtol=1e-8, atol=1e-6)


@pytest.mark.skipif(gpu_platform() is None, reason="OpenMM has no GPU platform here")
@pytest.mark.parametrize("make", [alanine_dipeptide, lambda: peptide("AAA")], ids=["obc", "gbn2"])
def test_copies_on_a_gpu_have_the_forces_of_the_reference_platform(make):
    torch.manual_seed(0)
    molecule = make()
    x = torch.tensor(molecule.positions)
    x = (x + 0.005 * torch.randn(1500, *x.shape, dtype=F64)).numpy()
    forces = CopiesEnergy(molecule, gpu_platform()).forces(x)[::97]
    _, expected = OpenMMEnergy(molecule, platform="Reference").energy_and_forces(x[::97])
    assert abs(forces - expected).max() <= 1e-6 * abs(expected).max()


@pytest.mark.parametrize("kind", [InternalCoordinates, CartesianCoordinates])
@pytest.mark.parametrize("name", MOLECULES)
def test_coordinates(kind, name):
    torch.manual_seed(0)
    coordinates = kind(MOLECULES[name]())
    u = torch.randn(5, coordinates.n_coordinates, dtype=F64)
    x, log_abs_det = coordinates(u)
    back = coordinates.inverse(x)
    coordinates = coordinates.cuda()
    agree((x, log_abs_det), coordinates(u.cuda()))
    agree(back, coordinates.inverse(x.cuda()), atol=1e-8, rtol=0)


def gaussian(prior, latent_dim, circular_latent=False):
    coordinates = IdentityCoordinates(2)
    return CoarseGrainedModel(
        BoltzmannTarget(DoubleWell(), beta=1.0),
        coordinates,
        prior,
        GaussianDecoder(coordinates.circular, latent_dim, (8,), circular_latent=circular_latent),
        GaussianEncoder(coordinates.circular, latent_dim, (8,), circular_latent=circular_latent),
    )


MODELS = {
    "basins": lambda: CoarseGrainedModel.from_basins(
        BoltzmannTarget(DoubleWell(), beta=1.0), IdentityCoordinates(2), latent_dim=1, hidden=(8,)
    ),
    "normal": lambda: gaussian(StandardNormalPrior(2), 2),
    "torus": lambda: gaussian(TorusPrior(1), 1, circular_latent=True),
    "mixture": lambda: gaussian(GaussianMixturePrior(1, 3), 1),
    "flow": lambda: gaussian(FlowPrior(2, 2, (8,)), 2),
    "distribution": lambda: gaussian(StandardNormalPrior(2)(), 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_sample_and_train(name):
    torch.manual_seed(0)
    cg = MODELS[name]().cuda()
    samples = cg.sample(10)
    assert all(t.device.type == "cuda" for t in (samples.x, samples.u, samples.log_weights))
    for loss in (Trace_ELBO, PathGradientELBO):
        loss()(cg.model, cg.guide)(16).backward()
    assert all(p.grad.device.type == "cuda" for p in cg.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_density_of_the_cpu(name):
    """The same latents and coordinates on both devices."""
    torch.manual_seed(0)
    cg = MODELS[name]().double()
    samples = cg.sample(50)

    def densities(cg, u, latents):
        z = latents["z"]
        k = [latents["component"]] if "component" in latents else []
        prior = cg.prior.latent if k else cg.prior
        encoder = cg.encoder.encoder if k else cg.encoder
        with torch.no_grad():
            return (
                prior().log_prob(z),
                cg.decoder(z, *k).log_prob(u.clone()),
                encoder(u, *k).log_prob(z),
                cg.target.log_prob(cg.coordinates(u)[0]),
            )

    on_cpu = densities(cg, samples.u, samples.latents)
    moved = {name: value.cuda() for name, value in samples.latents.items()}
    agree(on_cpu, densities(cg.cuda(), samples.u.cuda(), moved), atol=1e-8, rtol=1e-8)
