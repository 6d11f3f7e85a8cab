import copy

import openmm
import pytest
import torch
from openmm import app, unit
from pyro import sample
from toy_models import gaussian_model, solved_model

from pyrocg.basins import find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.coordinates import InternalCoordinates
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.molecules import alanine_dipeptide
from pyrocg.priors import TorusPrior
from pyrocg.steering import BasinVariable, LatentVariable, openmm_force
from pyrocg.target import BoltzmannTarget


@pytest.fixture(scope="module")
def molecule():
    return alanine_dipeptide()


@pytest.fixture(scope="module")
def cg(molecule):
    target = BoltzmannTarget(OpenMMEnergy(molecule, "Reference", workers=1), temperature=330)
    coordinates = InternalCoordinates(molecule)
    basins = find_basins(target, coordinates, starts=8, steps=30, cover=None)
    torch.manual_seed(0)
    return CoarseGrainedModel.from_basins(target, coordinates, basins, hidden=(16,), n_couplings=2)


@pytest.fixture(scope="module")
def positions(cg):
    torch.manual_seed(1)
    return cg.sample(20).x.double()


def variables(cg):
    return [BasinVariable(cg, [0, 1]), LatentVariable(cg, 1, component=1)]


def test_log_odds_of_basins(cg, positions):
    probs = copy.deepcopy(cg.encoder.partition).double()(cg.coordinates.inverse(positions)[0]).probs
    inside = probs[:, [0, 2]].sum(-1)
    found = BasinVariable(cg, [2, 0])(positions)
    torch.testing.assert_close(found.sigmoid(), inside, atol=1e-6, rtol=1e-6)


def test_the_mean_of_the_encoder(cg, positions):
    draws = 4000
    latents = cg.encode(positions.float(), draws)
    chosen = latents["component"] == 1
    n = chosen.sum(0)
    enough = n > draws / 4
    assert enough.any()
    z = latents["z"][..., 0].double()
    mean = (z * chosen).sum(0) / n
    error = (((z - mean).square() * chosen).sum(0)).sqrt() / n
    found = LatentVariable(cg, 0, component=1)(positions)
    assert ((found - mean).abs() < 5 * error)[enough].all()


def test_an_encoder_of_one_gaussian():
    cg = solved_model()
    x = torch.randn(7, *cg.coordinates.event_shape, dtype=torch.float64)
    expected = cg.encoder(cg.coordinates.inverse(x)[0]).mean[:, 0]
    torch.testing.assert_close(LatentVariable(cg)(x), expected)


def test_gradients_are_those_of_the_values(cg, positions):
    direction = torch.randn(positions[:4].shape, dtype=torch.float64)
    for s in variables(cg):
        x = positions[:4].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(s(x).sum(), x)
        slope = (s(x + 1e-6 * direction) - s(x - 1e-6 * direction)) / 2e-6
        expected = (gradient * direction).sum((-1, -2))
        torch.testing.assert_close(slope, expected, atol=1e-5, rtol=1e-5)


def test_rigid_motion_changes_nothing(cg, positions):
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turn = turn * turn.det().sign()
    for s in variables(cg):
        torch.testing.assert_close(s(positions @ turn + 0.3), s(positions))


def test_single_precision_in_and_out(cg, positions):
    for s in variables(cg):
        found = s(positions.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), s(positions), atol=1e-3, rtol=1e-3)


def test_training_changes_nothing_afterwards(cg, positions):
    s = LatentVariable(cg, 0, component=0)
    before = s(positions)
    with torch.no_grad():
        for parameter in cg.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(s(positions), before, atol=0, rtol=0)
    assert not any(p.requires_grad for p in s.parameters())
    with torch.no_grad():
        for parameter in cg.parameters():
            parameter.sub_(0.1)


def test_openmm_gets_values_and_forces(cg, positions):
    for s in variables(cg):
        system = openmm.System()
        for _ in range(positions.shape[1]):
            system.addParticle(1.0)
        bias = openmm.CustomCVForce("0.5 * k * (s - 1)^2")
        bias.addGlobalParameter("k", 3.0)
        bias.addCollectiveVariable("s", openmm_force(s))
        system.addForce(bias)
        reference = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
        context.setPositions(positions[0].numpy())
        state = context.getState(energy=True, forces=True)
        x = positions[:1].clone().requires_grad_()
        energy = 1.5 * (s(x) - 1).square().sum()
        (gradient,) = torch.autograd.grad(energy, x)
        assert state.getPotentialEnergy()._value == pytest.approx(energy.item(), rel=1e-9)
        found = torch.tensor(state.getForces(asNumpy=True)._value)
        torch.testing.assert_close(found, -gradient[0], atol=1e-8, rtol=1e-8)


def test_metadynamics(cg, molecule):
    s = BasinVariable(cg, [0])
    cv = app.BiasVariable(openmm_force(s), -40.0, 40.0, 2.0)
    system = openmm.XmlSerializer.clone(molecule.system)
    meta = app.Metadynamics(system, [cv], 330 * unit.kelvin, 5.0, 1.0, 10)
    integrator = openmm.LangevinMiddleIntegrator(330, 1.0, 0.001)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    meta.step(simulation, 20)
    x = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    (value,) = meta.getCollectiveVariables(simulation)
    assert value == pytest.approx(s(torch.tensor(x)[None]).item(), abs=1e-6)
    assert meta.getFreeEnergy()._value.min() < 0


def test_a_torus_has_no_mean():
    with pytest.raises(ValueError, match="expected real latents, got a torus"):
        LatentVariable(gaussian_model(TorusPrior(1), circular_latent=True))


def test_an_encoder_program_is_refused():
    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = GaussianEncoder(torch.zeros(2, dtype=torch.bool), 1, (8,))

        def forward(self, u):
            sample("z", self.encoder(u))

    with pytest.raises(ValueError, match="returns a distribution, got NoneType"):
        LatentVariable(gaussian_model(encoder=Program()))


def test_refusals(cg):
    n = len(cg.prior.shares)
    for inside in ([], range(n), [n], [-1]):
        with pytest.raises(
            ValueError, match=f"expected some, not all, of the components 0 to {n - 1}"
        ):
            BasinVariable(cg, inside)
    with pytest.raises(ValueError, match=r"expected a component from 0 to .*, got None"):
        LatentVariable(cg)
    with pytest.raises(ValueError, match="expected an index from 0 to 1, got 2"):
        LatentVariable(cg, 2, component=0)
    with pytest.raises(ValueError, match="expected a model with a partition into basins"):
        BasinVariable(solved_model(), [0])
    with pytest.raises(ValueError, match="expected no component"):
        LatentVariable(solved_model(), component=0)
    with pytest.raises(ValueError, match="expected an index from 0 to"):
        LatentVariable(solved_model(), -1)
