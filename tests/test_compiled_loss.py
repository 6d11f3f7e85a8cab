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
from pyrocg.energies.toy import DoubleWell, GaussianMixture
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


class WidePrior(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self):
        return pyro.sample("z", dist.Normal(torch.zeros(1), self.log_scale.exp()).to_event(1))


def wide_prior():
    with pyro.settings.context(module_local_params=True):
        return WidePrior()


class Located(torch.nn.Module):
    """A normal prior, or encoder, around the bias of a layer that it may share with another."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, u=None):
        loc = self.layer.bias if u is None else self.layer(u)
        return dist.Normal(loc, 1.0).to_event(1)


def sharing():
    layer = torch.nn.Linear(2, 1)
    return Located(layer), Located(layer)


MODELS = {
    "gaussian": gaussian_model,
    "prior program": lambda: gaussian_model(hierarchical),
    "prior program with parameters": lambda: gaussian_model(wide_prior()),
    "shared by prior and encoder": lambda: gaussian_model(
        **dict(zip(("prior", "encoder"), sharing(), strict=True))
    ),
    "capped, with tensors": lambda: gaussian_model(
        energy=CappedEnergy(GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.5, 1.0]), 1.0, 1.0)
    ),
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
    cg = MODELS[model]()
    before = [*cg.parameters(), *cg.buffers()]
    assert_same(*made(cg), rtol=1e-4)
    after = [*cg.parameters(), *cg.buffers()]
    assert all(a is b for a, b in zip(before, after, strict=True))


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


def plain_with_a_program(change, model, match, monkeypatch):
    """A program whose results are changed is given up at the third batch."""
    monkeypatch.setattr(
        compiled_loss, "_compiled", lambda graph: lambda *tensors: change(list(graph(*tensors)))
    )
    elbo = PathGradientELBO()(model.model, model.guide)
    compiled = CompiledLoss(elbo, model.target, N)
    for call in range(4):
        torch.manual_seed(call)
        if call == 2:
            with pytest.warns(RuntimeWarning, match=match):
                found = compiled()
        else:
            found = compiled()
        of_loss, after = gradients(elbo), torch.get_rng_state()
        torch.manual_seed(call)
        elbo.zero_grad(set_to_none=True)
        assert torch.equal(found, backward(elbo, N))
        assert all(torch.equal(of_loss[k], g) for k, g in gradients(elbo).items())
        assert torch.equal(torch.get_rng_state(), after)
    assert compiled._program is None


class Offset(DoubleWell):
    """With a zero of energy far away, so that the loss is large."""

    def _energy(self, x):
        return super()._energy(x) - 5000.0


@pytest.mark.parametrize("which", ["all", "one", "none there"])
def test_a_program_with_wrong_gradients_is_not_used(which, monkeypatch):
    def change(results):
        loss, *rest = results
        if which == "all":
            return [loss, *(-g for g in rest)]
        rest[-2] = None if which == "none there" else 1.1 * rest[-2]
        return [loss, *rest]

    match = r"a gradient differs by [0-9.]+ of its norm"
    plain_with_a_program(change, gaussian_model(energy=Offset()), match, monkeypatch)


def test_a_program_with_a_wrong_loss_is_not_used(monkeypatch):
    plain_with_a_program(
        lambda r: [r[0] + 1.0, *r[1:]], gaussian_model(), "its loss is", monkeypatch
    )


def test_a_program_that_is_right_at_the_next_batch_is_used(monkeypatch):
    calls = iter(range(100))

    def change(results):
        factor = 2.0 if next(calls) < 2 else 1.0  # wrong at two batches
        return [factor * t for t in results]

    monkeypatch.setattr(
        compiled_loss, "_compiled", lambda graph: lambda *tensors: change(list(graph(*tensors)))
    )
    cg = gaussian_model()
    elbo = PathGradientELBO()(cg.model, cg.guide)
    compiled = CompiledLoss(elbo, cg.target, N)
    for _ in range(5):
        compiled()
    assert compiled._program is not None
    assert cg.target.energy.calls == 5 * N
    assert_same(compiled, elbo)


class Learned(DoubleWell):
    def __init__(self):
        super().__init__()
        self.depth = torch.nn.Parameter(torch.ones(()))


def test_an_energy_to_train_is_refused():
    cg = gaussian_model(energy=Learned())
    elbo = PathGradientELBO()(cg.model, cg.guide)
    with pytest.raises(ValueError, match="without parameters to train, got a Learned"):
        CompiledLoss(elbo, cg.target, N)


class Counting(torch.nn.Module):
    """A standard normal prior that counts its calls in a buffer."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("count", torch.zeros(()))

    def forward(self):
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)


@pytest.mark.usefixtures("uncompiled")
def test_buffers_that_change_in_place_do_so_once_in_a_call():
    cg = gaussian_model(Counting(in_place=True))
    elbo = Once()(cg.model, cg.guide)
    compiled = CompiledLoss(elbo, cg.target, N)
    for call in range(1, 4):
        compiled()
        assert float(cg.prior.count) == call
    assert compiled._program is not None


class Once(PathGradientELBO):
    """Without path gradients, for which the guide is called twice."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return sum(
            g.log_prob_sum() - m.log_prob_sum()
            for m, g in self._get_traces(model, guide, args, kwargs)
        )


def test_buffers_that_are_replaced_are_left_uncompiled():
    cg = gaussian_model(Counting(in_place=False))
    elbo = PathGradientELBO()(cg.model, cg.guide)
    with pytest.warns(RuntimeWarning, match=r"buffer guide\.prior\.count was replaced"):
        CompiledLoss(elbo, cg.target, N)()


def test_a_program_of_an_energy_that_does_not_depend_on_positions_gives_its_numbers(uncompiled):
    class Flat(DoubleWell):
        def _energy(self, x):
            return x.new_ones(len(x))

    assert_same(*made(gaussian_model(energy=Flat())))


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
