import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from toy_models import gaussian_model

import pyrocg
from pyrocg import compiled_loss
from pyrocg.basins import find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import load_state, save_state
from pyrocg.compiled_loss import CompiledLoss, backward
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.abstract import CappedEnergy, Energy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.energies.toy import DoubleWell
from pyrocg.internal import InternalCoordinates
from pyrocg.losses import WeightPriorELBO
from pyrocg.objectives import AnalyticEntropyELBO, ForwardKLELBO, PathGradientELBO
from pyrocg.target import BoltzmannTarget
from pyrocg.training import fit
from pyrocg.weight_priors import GaussianWeightPrior

N = 48


@pytest.fixture
def uncompiled(monkeypatch):
    """The traced program in place of compiled code, which takes long to make."""
    monkeypatch.setattr(torch, "compile", lambda program, **_: program)


def mixture(energy=None, **sizes):
    torch.manual_seed(0)
    target, coordinates = BoltzmannTarget(energy or DoubleWell(), beta=1.0), IdentityCoordinates(2)
    basins = find_basins(target, coordinates, starts=16, steps=100)
    sizes = {"latent_dim": 1, "hidden": (8,), "n_couplings": 2} | sizes
    return CoarseGrainedModel.from_basins(target, coordinates, basins, **sizes)


def molecular(energy):
    """A Gaussian decoder around the structure of alanine dipeptide."""
    torch.manual_seed(0)
    molecule = pyrocg.alanine_dipeptide()
    coordinates = InternalCoordinates(molecule)
    decoder = pyrocg.GaussianDecoder(coordinates.circular, 2, (8,))
    u, _ = coordinates.inverse(torch.tensor(molecule.positions))
    with torch.no_grad():
        decoder.mean.layers[-1].bias.copy_(u)
        decoder.log_variance.layers[-1].bias.fill_(-8.0)
    return CoarseGrainedModel(
        BoltzmannTarget(energy(molecule), temperature=330.0),
        coordinates,
        pyrocg.StandardNormalPrior(2),
        decoder,
        pyrocg.GaussianEncoder(coordinates.circular, 2, (8,)),
    )


def capped(molecule):
    return CappedEnergy(CompiledEnergy(molecule, compile=False), -50.0, 10.0)


def gradients(elbo):
    return {k: p.grad.clone() for k, p in elbo.named_parameters() if p.grad is not None}


def made(cg, loss=None):
    """A compiled loss whose program is there, and the module that it comes from."""
    elbo = (loss or PathGradientELBO())(cg.model, cg.guide)
    compiled = CompiledLoss(elbo, cg.target, N)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled()
    assert compiled._program is not None
    return compiled, elbo


def assert_same(compiled, elbo, rtol=1e-5):
    """Loss, gradients and random numbers of three calls are those of plain calls."""
    torch.manual_seed(7)
    found = [(compiled(), gradients(elbo)) for _ in range(3)]
    after = torch.get_rng_state()
    torch.manual_seed(7)
    for loss, of_loss in found:
        elbo.zero_grad(set_to_none=True)
        torch.testing.assert_close(loss, backward(elbo, N), rtol=rtol, atol=rtol)
        expected = gradients(elbo)
        assert of_loss.keys() == expected.keys()
        for name, gradient in expected.items():
            error = (of_loss[name] - gradient).norm()
            assert error <= rtol * (gradient.norm() + 1e-3), name
    assert torch.equal(torch.get_rng_state(), after)
    assert len({float(loss) for loss, _ in found}) == 3


# The numbers are those of Pyro


LOSSES = {
    "path gradients": PathGradientELBO,
    "two particles": lambda: PathGradientELBO(num_particles=2),
    "analytic entropy": AnalyticEntropyELBO,
    "weight prior": lambda: WeightPriorELBO(PathGradientELBO(), GaussianWeightPrior(), 1e3),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("uncompiled")
def test_the_program_of_every_loss_gives_its_numbers(loss):
    assert_same(*made(mixture(), LOSSES[loss]()))


def hierarchical():
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 0.3))
    return pyro.sample("z", dist.Normal(torch.zeros(1), scale.unsqueeze(-1)).to_event(1))


MODELS = {
    "gaussian": gaussian_model,
    "prior program": lambda: gaussian_model(hierarchical),
    "distribution": lambda: gaussian_model(dist.StudentT(4.0, torch.zeros(1)).to_event(1)),
    "double precision": lambda: mixture().double(),
    "matrices by component": mixture,
    "molecule": lambda: molecular(lambda m: CompiledEnergy(m, compile=False)),
    "capped": lambda: molecular(capped),
    "OpenMM": lambda: molecular(OpenMMEnergy),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("uncompiled")
def test_the_program_of_every_model_gives_its_numbers(model, monkeypatch):
    if model == "matrices by component":
        monkeypatch.setattr("pyrocg.coupling_decoder._FEW", 0)
    assert_same(*made(MODELS[model]()), rtol=1e-4)


def test_compiled_code_gives_the_numbers_of_plain_svi():
    cg = mixture()
    compiled, elbo = made(cg)
    torch.manual_seed(3)
    found, of_loss = compiled(), gradients(elbo)
    cg.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    pyro.clear_param_store()
    svi = SVI(cg.model, cg.guide, Adam({"lr": 0.0}), PathGradientELBO())
    with pytest.MonkeyPatch.context() as patch:  # the gradients of the step stay
        patch.setattr("pyro.infer.util.zero_grads", lambda parameters: None)
        loss = svi.step(N)
    assert float(found) == pytest.approx(loss / N, rel=1e-5)
    for name, gradient in gradients(elbo).items():
        assert (of_loss[name] - gradient / N).norm() <= 1e-4 * of_loss[name].norm() + 1e-7, name


# What changes between calls


@pytest.mark.usefixtures("uncompiled")
def test_temper_shares_and_parameters_are_read_at_every_call():
    cg = mixture()
    compiled, elbo = made(cg)
    cg.temper = 0.3
    cg.prior.set_shares(torch.tensor([0.9, 0.1]))
    with torch.no_grad():
        for parameter in cg.parameters():
            parameter.add_(0.1)
    assert_same(compiled, elbo)


@pytest.mark.usefixtures("uncompiled")
def test_energies_are_counted_but_for_those_of_the_comparison():
    cg = molecular(lambda m: CappedEnergy(CompiledEnergy(m, compile=False), 0.0, 10.0))
    compiled, _ = made(cg)
    assert cg.target.energy.calls == cg.target.energy.exact.calls == N
    compiled()
    assert cg.target.energy.calls == cg.target.energy.exact.calls == 2 * N


class Hole(Energy):
    """Infinite where x is above 0.5."""

    def __init__(self):
        super().__init__((2,))

    def _energy(self, x):
        return torch.where(x[:, 0] > self.edge, torch.inf, x.square().sum(-1))


@pytest.mark.usefixtures("uncompiled")
def test_a_call_without_finite_gradients_is_not_what_the_program_is_made_at():
    energy = Hole()
    energy.edge = -math.inf
    cg = gaussian_model(energy=energy)
    elbo = PathGradientELBO()(cg.model, cg.guide)
    compiled = CompiledLoss(elbo, cg.target, N)
    assert not compiled().isfinite()
    assert compiled._program is None
    energy.edge = math.inf
    assert compiled().isfinite()
    assert compiled._program is not None
    assert energy.nonfinite == N
    energy.edge = -math.inf  # Python that is asked at every call: the energy's
    assert not compiled().isfinite()
    assert energy.nonfinite == 2 * N


# What cannot be compiled


def undecided():
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    return z if bool((z > 0).any()) else -z


def plain_after_a_warning(cg, loss, match):
    elbo = loss(cg.model, cg.guide)
    compiled = CompiledLoss(elbo, cg.target, N)
    torch.manual_seed(7)
    with pytest.warns(RuntimeWarning, match=match):
        found = compiled()
    of_loss, after = gradients(elbo), torch.get_rng_state()
    torch.manual_seed(7)
    elbo.zero_grad(set_to_none=True)
    assert torch.equal(found, backward(elbo, N))
    assert all(torch.equal(of_loss[k], g) for k, g in gradients(elbo).items())
    assert torch.equal(torch.get_rng_state(), after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled()


@pytest.mark.parametrize(
    ("prior", "loss"),
    [(undecided, PathGradientELBO), (None, ForwardKLELBO), (None, Trace_ELBO)],
    ids=["prior", "forward KL", "Trace_ELBO"],
)
def test_what_decides_by_values_is_left_uncompiled(prior, loss):
    plain_after_a_warning(gaussian_model(prior), loss(), "not compiled")


def test_a_wrong_program_is_not_used(monkeypatch):
    def wrong(graph):
        return lambda *tensors: [t if t is None else 1.1 * t for t in graph(*tensors)]

    monkeypatch.setattr(compiled_loss, "_compiled", wrong)
    plain_after_a_warning(gaussian_model(), PathGradientELBO(), r"differ by 0\.1 of their norm")


def test_without_a_compiler_steps_are_uncompiled(monkeypatch):
    def broken(program, **_):
        raise RuntimeError("no working C++ compiler\n\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    match = r"not compiled \(RuntimeError: no working C\+\+ compiler\)"
    plain_after_a_warning(gaussian_model(), PathGradientELBO(), match)


# Training


QUICK = {"steps": 20, "num_samples": 16, "evaluate_every": 10, "evaluate_samples": 64}


@pytest.mark.filterwarnings("ignore:the encoder learned almost nothing")
@pytest.mark.usefixtures("uncompiled")
def test_a_training_gives_the_numbers_of_an_uncompiled_one():
    expected = fit(mixture(), **QUICK, progress=False)
    found = fit(mixture(), **QUICK, progress=False, compile=True)
    assert found.energy_calls == expected.energy_calls
    for name, column in expected.history.items():
        assert found.history[name] == pytest.approx(column, rel=1e-3, abs=1e-4), name


@pytest.mark.filterwarnings("ignore:the encoder learned almost nothing")
@pytest.mark.usefixtures("uncompiled")
def test_a_stopped_training_continues_to_the_same_numbers(tmp_path):
    expected = fit(mixture(), **QUICK, progress=False, compile=True)
    file, calls = tmp_path / "checkpoint.pt", iter(range(100))
    given = {**QUICK, "progress": False, "compile": True, "checkpoint": file}
    with pytest.raises(KeyboardInterrupt):
        fit(mixture(), **given, interrupted=lambda: next(calls) == 12)
    found = fit(mixture(), **given)
    assert found.history == expected.history
    with pytest.raises(ValueError, match="compile=True"):
        fit(mixture(), **{**given, "compile": False})


@pytest.mark.filterwarnings("ignore:the encoder learned almost nothing")
def test_a_checkpoint_from_before_there_was_compiled_code_goes_on(tmp_path):
    file = tmp_path / "checkpoint.pt"
    expected = fit(mixture(), **QUICK, progress=False, checkpoint=file)
    state = load_state(file)
    del state["settings"]["compile"]
    save_state(file, state)
    assert fit(mixture(), **QUICK, progress=False, checkpoint=file).history == expected.history
