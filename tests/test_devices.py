"""Tensors of a GPU in and out, and the numbers of the CPU.

On a GPU where there is one. Without one everything but the compiler runs on a pretended one, which
refuses what a GPU refuses: tensors of both devices in one operation.
"""

import copy
import math

import pytest
import torch
from pretended import PRETENDED, pretended_gpu
from pyro.infer import Trace_ELBO
from small_molecules import MOLECULES, alanine_dipeptide
from toy_models import TOYS, gaussian_model

import pyrocg
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import CartesianCoordinates, IdentityCoordinates, InternalCoordinates
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.copies import CopiesEnergy
from pyrocg.energies.openmm import OpenMMEnergy, gpu_platform
from pyrocg.energies.toy import DoubleWell
from pyrocg.molecules import peptide
from pyrocg.objectives import PathGradientELBO
from pyrocg.priors import FlowPrior, GaussianMixturePrior, StandardNormalPrior, TorusPrior
from pyrocg.target import BoltzmannTarget

F64 = torch.float64
HAS_GPU = torch.cuda.is_available()


@pytest.fixture
def gpu():
    """The name of the GPU as a device."""
    if HAS_GPU:
        yield "cuda"
    else:
        with pretended_gpu() as name:
            yield name


needs_a_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")


@pytest.mark.skipif(HAS_GPU, reason="there is one")
def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu):
    there, here = torch.ones(3, device=gpu), torch.ones(3)
    assert (2 * there).sum().item() == 6.0
    assert there[torch.tensor([0, 2])].tolist() == [1.0, 1.0]
    one = there.sum()
    assert (one + torch.tensor(1.0)).item() == 4.0
    for mixed in (
        lambda: there + here,
        lambda: here.add_(there),
        lambda: torch.cat([here, there]),
        lambda: torch.stack([torch.tensor(1.0), one]),
        lambda: torch.tensor(1.0).add_(one),
        lambda: here[torch.tensor([0, 2], device=gpu)],
        lambda: there.index_select(0, torch.tensor(1)),
    ):
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            mixed()
    with pytest.raises(RuntimeError, match="expected a generator of the device"):
        torch.randn(3, device=gpu, generator=torch.Generator())
    with pytest.raises(TypeError, match=r"use \.cpu\(\) first"):
        there.numpy()


def energy_and_gradient(energy, x):
    x = x.detach().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.device == gradient.device == x.device
    return value, gradient


def agree(on_cpu, on_cuda, **tolerances):
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert b.device.type == (PRETENDED if not HAS_GPU else "cuda")
        torch.testing.assert_close(b.cpu(), a, **tolerances)


@pytest.mark.parametrize("name", TOYS)
def test_toy_energies(name, gpu):
    torch.manual_seed(0)
    energy = TOYS[name]()
    x = torch.randn(20, energy.dim, dtype=F64)
    on_cpu = energy_and_gradient(energy, x)
    agree(on_cpu, energy_and_gradient(copy.deepcopy(energy).to(gpu), x.to(gpu)))


@pytest.mark.parametrize(
    "engine",
    [
        lambda m: CompiledEnergy(m, compile=HAS_GPU),
        lambda m: OpenMMEnergy(m, platform="Reference"),
        lambda m: CopiesEnergy(m, "Reference", copies=8),
    ],
    ids=["torch", "omm", "copies"],
)
def test_molecular_energies(engine, gpu):
    torch.manual_seed(0)
    molecule = alanine_dipeptide()
    energy = engine(molecule)
    x = torch.tensor(molecule.positions)
    x = x + 0.002 * torch.randn(8, *x.shape, dtype=F64)
    on_cpu = energy_and_gradient(energy, x)
    agree(on_cpu, energy_and_gradient(energy.to(gpu), x.to(gpu)), rtol=1e-8, atol=1e-6)


@needs_a_gpu
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


@needs_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_cuda_graphs_of_the_energy(dtype):
    torch.manual_seed(0)
    molecule = alanine_dipeptide()
    fast, plain = CompiledEnergy(molecule, dtype), CompiledEnergy(molecule, dtype, compile=False)
    x = torch.tensor(molecule.positions, dtype=dtype).cuda()
    for _ in range(6):
        noisy = x + 0.005 * torch.randn(500, *x.shape, dtype=dtype, device="cuda")
        expected = energy_and_gradient(plain, noisy)
        found = energy_and_gradient(fast, noisy)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-1)
    (program,) = fast._programs.values()
    assert len(program._columns._graphs) == 1


@pytest.mark.parametrize("kind", [InternalCoordinates, CartesianCoordinates])
@pytest.mark.parametrize("name", MOLECULES)
def test_coordinates(kind, name, gpu):
    torch.manual_seed(0)
    coordinates = kind(MOLECULES[name]())
    u = torch.randn(5, coordinates.n_coordinates, dtype=F64)
    x, log_abs_det = coordinates(u)
    back = coordinates.inverse(x)
    coordinates = coordinates.to(gpu)
    agree((x, log_abs_det), coordinates(u.to(gpu)))
    agree(back, coordinates.inverse(x.to(gpu)), atol=1e-8, rtol=0)


MODELS = {
    "basins": lambda: CoarseGrainedModel.from_basins(
        BoltzmannTarget(DoubleWell(), beta=1.0), IdentityCoordinates(2), latent_dim=1, hidden=(8,)
    ),
    "normal": lambda: gaussian_model(latent_dim=2),
    "torus": lambda: gaussian_model(TorusPrior(1), circular_latent=True),
    "mixture": lambda: gaussian_model(GaussianMixturePrior(1, 3)),
    "flow": lambda: gaussian_model(FlowPrior(2, 2, (8,)), 2),
    "distribution": lambda: gaussian_model(StandardNormalPrior(2)(), 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_sample_and_train(name, gpu):
    torch.manual_seed(0)
    cg = MODELS[name]().to(gpu)
    samples = cg.sample(10)
    assert all(t.device.type == gpu for t in (samples.x, samples.u, samples.log_weights))
    for loss in (Trace_ELBO, PathGradientELBO):
        loss()(cg.model, cg.guide)(16).backward()
    assert all(p.grad.device.type == gpu for p in cg.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_density_of_the_cpu(name, gpu):
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
    moved = {name: value.to(gpu) for name, value in samples.latents.items()}
    agree(on_cpu, densities(cg.to(gpu), samples.u.to(gpu), moved), atol=1e-8, rtol=1e-8)


# Whole runs: nothing of them is on the CPU by mistake


FEW = {"num_samples": 16, "evaluate_every": 2, "evaluate_samples": 32, "progress": False}


@pytest.mark.parametrize("name", ["basins", "normal"])
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_a_training_goes_on_to_the_same_numbers(name, gpu, tmp_path):
    def trained(steps, **options):
        torch.manual_seed(0)
        return pyrocg.fit(MODELS[name]().to(gpu), steps, **FEW, **options)

    whole, stops = trained(4), iter([False, True])
    file = {"checkpoint": tmp_path / "state.pt"}
    with pytest.raises(KeyboardInterrupt):
        trained(4, **file, interrupted=lambda: next(stops))
    resumed = trained(4, **file)
    assert resumed.history["elbo"] == whole.history["elbo"]
    ends = (torch.cat([p.flatten() for p in r.model.parameters()]) for r in (whole, resumed))
    torch.testing.assert_close(*(end.cpu() for end in ends), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_what_a_trained_model_is_used_for(gpu, tmp_path):
    torch.manual_seed(0)
    cg, quiet = MODELS["basins"]().to(gpu), {"progress": False}
    pyrocg.fit(cg, 4, schedule=pyrocg.AdaptiveSchedule(), **FEW)
    observables = pyrocg.double_well_observables()
    laplace = pyrocg.LaplacePosterior.fit(cg, 1000, rank=2, num_draws=8, encoder_draws=2)
    swag = pyrocg.SWAGPosterior.fit(cg, 20, 16, collect_every=5, rank=2)
    assert_finite(pyrocg.predict(cg, observables, 200, **quiet))
    for posterior in (laplace, swag):
        posterior.save(tmp_path / "posterior.pt")
        read = pyrocg.load_posterior(tmp_path / "posterior.pt")
        options = {"posterior": read, "n_weight_draws": 2}
        assert_finite(pyrocg.predict(cg, observables, 200, **options, **quiet))
    annealed = pyrocg.anneal(cg, 64, bridge=pyrocg.find_bridge(cg, pilot=64), **quiet)
    assert math.isfinite(annealed.log_z)
    log_weights = pyrocg.score(cg, cg.sample(8).x)
    assert log_weights.device.type == gpu
    assert log_weights.isfinite().all()


def assert_finite(prediction):
    estimates = prediction.estimates().values()
    assert all(math.isfinite(value) for e in estimates for value in (e.mean, *e.interval))


def test_dynamics_and_its_comparison_with_a_model(gpu, tmp_path):
    torch.manual_seed(0)
    cg = MODELS["basins"]().to(gpu)
    start = torch.zeros(1, 2, device=gpu)
    options = {"ladder": (1.0, 2.0), "n_ladders": 4, "record_every": 5, "progress": False}
    file = tmp_path / "dynamics.ckpt"
    for _ in range(2):  # the second one restores
        run = pyrocg.replica_exchange(
            cg.target, start, 200, time_step=0.05, **options, checkpoint=file
        )
    found = pyrocg.compare(cg, run, pyrocg.double_well_observables(), num_samples=200)
    assert math.isfinite(found.eubo)


def test_a_molecule_from_its_basins_on(gpu):
    torch.manual_seed(0)
    molecule = alanine_dipeptide()
    energy = CompiledEnergy(molecule, compile=HAS_GPU)
    target = BoltzmannTarget(energy, 300.0).to(gpu)
    coordinates = InternalCoordinates(molecule).to(gpu)
    basins = pyrocg.find_basins(target, coordinates, starts=4, steps=20)
    assert basins.u.device.type == gpu
    cg = CoarseGrainedModel.from_basins(target, coordinates, basins, hidden=(8,))
    pyrocg.fit(cg, 2, **FEW)
    assert all(p.device.type == gpu for p in cg.parameters())
