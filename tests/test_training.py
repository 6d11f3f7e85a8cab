import errno
import itertools
import math
import os
import warnings

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from toy_models import gaussian_model, solved_model

from pyrocg.basins import find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import load_state
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.abstract import Energy
from pyrocg.energies.toy import DoubleWell, GaussianMixture
from pyrocg.losses import WeightPriorELBO
from pyrocg.objectives import PathGradientELBO
from pyrocg.optimization import default_optimizer, warmup_cosine
from pyrocg.target import BoltzmannTarget
from pyrocg.tempering import AdaptiveSchedule, FixedSchedule, LinearSchedule
from pyrocg.training import fit
from pyrocg.training_loop import TrainingLoop
from pyrocg.weight_priors import ARDWeightPrior, GaussianWeightPrior

QUICK = {"steps": 40, "num_samples": 16, "evaluate_every": 10, "evaluate_samples": 64}
QUIET = {"progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:the encoder learned almost nothing")


def model(seed=0):
    torch.manual_seed(seed)
    return gaussian_model()


def mixture_model(energy=None):
    torch.manual_seed(0)
    target, coordinates = BoltzmannTarget(energy or DoubleWell(), beta=1.0), IdentityCoordinates(2)
    return CoarseGrainedModel.from_basins(
        target,
        coordinates,
        find_basins(target, coordinates, starts=16, steps=100),
        latent_dim=1,
        hidden=(8,),
        n_couplings=2,
    )


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same(first, second):
    """Everything but the wall time, bit by bit."""
    assert equal(first.model.state_dict(), second.model.state_dict())
    assert equal(first.best_state, second.best_state)
    assert first.history == second.history
    for name in ("steps", "stopped", "energy_calls", "skipped", "best_step"):
        assert getattr(first, name) == getattr(second, name)


# Determinism


def test_same_seed_same_numbers_and_the_global_generator_is_left_alone():
    cg = model()
    state = torch.get_rng_state()
    first = fit(cg, **QUICK, **QUIET, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    same(first, fit(model(), **QUICK, **QUIET, seed=3))
    other = fit(model(), **QUICK, **QUIET, seed=4)
    assert other.history["elbo"] != first.history["elbo"]


SCHEDULES = {
    "none": None,
    "linear": LinearSchedule(0.1, until=0.5),
    "adaptive": AdaptiveSchedule(0.05, max_step=0.3, until=0.7),
}


class Killed(BaseException):
    pass


def killed_at(step, monkeypatch):
    """Let the next run save after every step and die in the given one."""
    plain, calls = TrainingLoop._step, []

    def deadly(run):
        calls.append(run)
        if len(calls) > step:
            raise Killed
        plain(run)

    monkeypatch.setattr(TrainingLoop, "_step", deadly)


@pytest.mark.parametrize("make", [model, mixture_model])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", [7, 30])
@pytest.mark.filterwarnings("ignore:t was forced")  # too few evaluations for this start
def test_a_killed_run_continues_to_the_same_numbers(make, schedule, step, tmp_path, monkeypatch):
    options = QUICK | QUIET | {"schedule": SCHEDULES[schedule], "checkpoint_seconds": 0.0}
    whole = fit(make(), **options, checkpoint=tmp_path / "whole.pt")
    path = tmp_path / "killed.pt"
    with monkeypatch.context() as patch:
        killed_at(step, patch)
        with pytest.raises(Killed):
            fit(make(), **options, checkpoint=path)
    assert load_state(path)["counters"]["step"] == step
    resumed = fit(make(), **options, checkpoint=path)
    same(whole, resumed)


@pytest.mark.parametrize("make", [model, mixture_model])
def test_resuming_a_finished_run_changes_nothing(make, tmp_path):
    path = tmp_path / "state.pt"
    first = fit(make(), **QUICK, **QUIET, checkpoint=path)
    same(first, fit(make(), **QUICK, **QUIET, checkpoint=path))


def test_a_run_killed_before_its_shares_are_set_gets_them_on_resumption(tmp_path, monkeypatch):
    path, options = tmp_path / "state.pt", QUICK | QUIET | {"checkpoint_seconds": 0.0}
    whole = fit(mixture_model(), **options, checkpoint=tmp_path / "whole.pt")

    def die(run):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_balance", die)
        with pytest.raises(Killed):
            fit(mixture_model(), **options, checkpoint=path)
    same(whole, fit(mixture_model(), **options, checkpoint=path))


def test_an_interrupted_run_saves_and_continues(tmp_path):
    path, answers = tmp_path / "state.pt", iter([False] * 12 + [True])
    with pytest.raises(KeyboardInterrupt):
        fit(model(), **QUICK, **QUIET, checkpoint=path, interrupted=lambda: next(answers))
    assert load_state(path)["counters"]["step"] == 13
    same(fit(model(), **QUICK, **QUIET), fit(model(), **QUICK, **QUIET, checkpoint=path))


def test_another_loss_than_in_the_checkpoint_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    fit(model(), **QUICK, **QUIET, checkpoint=path)
    with pytest.raises(ValueError, match=r"\(loss=PathGradientELBO\), got loss=Trace_ELBO"):
        fit(model(), **QUICK, **QUIET, loss=Trace_ELBO(), checkpoint=path)


def test_a_run_with_a_weight_prior_continues_to_the_same_numbers(tmp_path, monkeypatch):
    prior = {"weight_prior": ARDWeightPrior(), "gibbs_scale": 20.0}
    path, options = tmp_path / "state.pt", QUICK | QUIET | prior | {"checkpoint_seconds": 0.0}
    whole = fit(model(), **options)
    assert whole.history["loss"] != fit(model(), **QUICK, **QUIET).history["loss"]
    with monkeypatch.context() as patch:
        killed_at(7, patch)
        with pytest.raises(Killed):
            fit(model(), **options, checkpoint=path)
    other = {"weight_prior": GaussianWeightPrior(2.0), "gibbs_scale": 30.0}
    with pytest.raises(ValueError, match=r"got weight_prior=Gauss.*, gibbs_scale=30\.0"):
        fit(model(), **(options | other), checkpoint=path)
    same(whole, fit(model(), **options, checkpoint=path))


def test_the_weight_prior_is_worth_one_part_in_the_samples_of_the_run():
    prior = {"weight_prior": GaussianWeightPrior(0.1)}
    default = fit(model(), **QUICK, **QUIET, **prior)
    same(default, fit(model(), **QUICK, **QUIET, **prior, gibbs_scale=40 * 16))
    loss = WeightPriorELBO(PathGradientELBO(), GaussianWeightPrior(0.1), 40 * 16)
    same(default, fit(model(), **QUICK, **QUIET, loss=loss))
    with pytest.raises(ValueError, match="expected a weight_prior beside gibbs_scale"):
        fit(model(), **QUICK, **QUIET, gibbs_scale=10.0)


def test_other_settings_than_in_the_checkpoint_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    fit(model(), **QUICK, **QUIET, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"\(steps=40, seed=0\), got steps=50, seed=3"):
        fit(model(), **(QUICK | {"steps": 50}), **QUIET, seed=3, checkpoint=path)
    assert path.read_bytes() == before


def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    steps = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), **QUICK, **QUIET, checkpoint=path, interrupted=lambda: next(steps) >= 20)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fit(model(), **QUICK, **QUIET, checkpoint=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# What it learns


def test_fit_raises_the_elbo_to_below_log_z():
    energy = GaussianMixture([[0.5, -0.5]], [0.3])
    torch.manual_seed(0)
    result = fit(gaussian_model(energy=energy), 400, 64, learning_rate=1e-2, **QUIET)
    elbo = result.history["elbo"]
    assert elbo[0] < elbo[-1] < 0.05
    assert elbo[-1] > -0.1
    assert result.history["ess"][-1] > 0.9


def test_history_has_a_row_for_each_evaluation():
    result = fit(model(), **(QUICK | {"steps": 45}), **QUIET, schedule=LinearSchedule(0.2, 0.5))
    history = result.history
    assert history["step"] == [10, 20, 30, 40, 45]
    assert {len(column) for column in history.values()} == {5}
    assert history["t"] == sorted(history["t"])
    assert history["t"][-1] == 1.0
    calls = [n * 16 + (i + 1) * 64 for i, n in enumerate([10, 20, 30, 40, 45])]
    assert history["energy_calls"] == calls
    assert (result.steps, result.energy_calls, result.stopped) == (45, calls[-1], "finished")


@pytest.mark.parametrize("schedule", [LinearSchedule(0.1, until=1.0), AdaptiveSchedule(0.01)])
def test_tempering_ends_at_one(schedule):
    result = fit(model(), **QUICK, **QUIET, schedule=schedule)
    assert result.history["t"][0] < 1.0
    assert result.model.temper == 1.0


def test_other_losses_and_optimisers():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3)

    result = fit(model(), **QUICK, **QUIET, loss=Trace_ELBO(), optimizer=sgd)
    assert math.isfinite(result.history["elbo"][-1])


@pytest.mark.parametrize(
    ("optimizer", "got"),
    [
        (pyro.optim.Adam({"lr": 1e-3}), "PyroOptim"),
        (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3), "SGD"),
        (pyro.optim.Adam, "Adam"),
        (lambda parameters: 1.0, "a function to float"),
    ],
)
def test_optimisers_that_are_not_made_from_parameters_are_refused(optimizer, got):
    with pytest.raises(TypeError, match=f"function from parameters to a torch .*, got {got}"):
        fit(model(), **QUICK, **QUIET, optimizer=optimizer)


def test_learning_rate_warms_up_and_falls_to_zero():
    factor = warmup_cosine(steps=100, warmup=0.1)
    assert [factor(i) for i in range(10)] == sorted(factor(i) for i in range(10))
    assert factor(0) == pytest.approx(0.1)
    assert factor(100) == 0.0
    assert max(map(factor, range(101))) <= 1.0
    assert warmup_cosine(100, 0.0)(0) == 1.0


# Best state and early stopping


def test_use_best_restores_the_best_evaluation_at_t_1():
    result = fit(model(), **QUICK, **QUIET, schedule=LinearSchedule(0.2, 0.3))
    history = result.history
    rows = [i for i, t in enumerate(history["t"]) if t == 1.0]
    best = max(rows, key=lambda i: history["elbo"][i])
    assert result.best_step == history["step"][best]
    assert equal(result.use_best().state_dict(), result.best_state)


def test_without_t_1_the_last_state_is_the_best():
    result = fit(model(), **QUICK, **QUIET, schedule=FixedSchedule(0.5))
    assert result.best_step == 40
    assert equal(result.best_state, result.model.state_dict())


def test_early_stopping_when_the_elbo_no_longer_rises(tmp_path):
    path, options = tmp_path / "state.pt", QUICK | QUIET | {"steps": 1000, "patience": 3}
    result = fit(solved_model(), **options, checkpoint=path)
    assert result.stopped == "converged"
    assert result.steps == 40  # the first evaluation and three more
    same(result, fit(solved_model(), **options, checkpoint=path))


# The components of a mixture latent


def test_shares_become_the_parts_of_z():
    energy = GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 1.0, [0.9, 0.1])
    cg = mixture_model(energy)
    assert cg.prior.shares.tolist() == [0.5, 0.5]
    result = fit(cg, **QUICK, **QUIET)
    assert result.model.prior.shares.tolist() == pytest.approx([0.9, 0.1], abs=0.01)
    shares = result.best_state["guide.prior.shares"]
    assert torch.equal(shares, result.model.prior.shares)


def watch_shares(monkeypatch, cg, **options):
    """The shares that each step is taken with."""
    seen, plain = [], TrainingLoop._step

    def watching(run):
        seen.append(run.model.prior.shares.tolist())
        plain(run)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_step", watching)
        fit(cg, **options, **QUIET)
    return seen


def test_training_starts_with_equal_shares_also_the_second_time(monkeypatch):
    cg = mixture_model()
    fit(cg, **QUICK, **QUIET)
    assert cg.prior.shares[1] < 0.1
    seen = watch_shares(monkeypatch, cg, **QUICK)
    assert seen[: QUICK["evaluate_every"]] == [[0.5, 0.5]] * QUICK["evaluate_every"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0.9, 0.1], [0.75, 0.25]), ([0.999, 0.001], [1 / 1.125, 0.125 / 1.125])],
)
def test_training_shares_follow_the_roots_of_the_weights(monkeypatch, weights, expected):
    cg = mixture_model(GaussianMixture([[-6.0, 0.0], [6.0, 0.0]], 1.0, weights))
    options = {"steps": 80, "num_samples": 32, "evaluate_every": 2, "evaluate_samples": 256}
    assert watch_shares(monkeypatch, cg, **options)[-1] == pytest.approx(expected, abs=0.02)


# What can go wrong


class Holes(Energy):
    """Harmonic, but not finite on every so many evaluations of a batch."""

    def __init__(self, every, first=False, hole=math.inf):
        super().__init__((2,))
        self.hole = hole
        self.every, self.evaluations = every, 0 if not first else every - 1

    def _energy(self, x):
        self.evaluations += 1
        energy = 0.5 * x.square().sum(-1)
        return energy * self.hole if self.evaluations % self.every == 0 else energy


def holed_model(**options):
    torch.manual_seed(0)
    return gaussian_model(energy=Holes(**options))


@pytest.mark.parametrize("hole", [math.inf, math.nan])
@pytest.mark.parametrize("first", [False, True])
def test_steps_without_finite_loss_are_skipped_and_counted(first, hole):
    cg = holed_model(every=5, first=first, hole=hole)
    result = fit(cg, **(QUICK | {"evaluate_every": 40}), **QUIET)
    assert result.skipped == 8
    assert math.isfinite(result.history["loss"][-1])
    assert all(bool(v.isfinite().all()) for v in result.model.state_dict().values())


def test_a_hundred_failures_in_a_row_are_an_error():
    with pytest.raises(FloatingPointError, match="got none in 100 steps in a row"):
        fit(holed_model(every=1), **(QUICK | {"steps": 200, "evaluate_every": 500}), **QUIET)


def test_z_collapse_of_a_mixture_latent_is_seen_though_its_components_are_told_apart():
    torch.manual_seed(0)
    cg = CoarseGrainedModel.from_basins(
        BoltzmannTarget(DoubleWell(), beta=1.0), IdentityCoordinates(2), latent_dim=1, hidden=(8,)
    )
    assert cg.sample(500).latent_log_ratio.mean() > 0.1
    encoder = cg.encoder.encoder
    for connection in (cg.decoder.slopes, encoder.linear, encoder.offset, encoder.log_scale):
        torch.nn.init.zeros_(connection)
    torch.nn.init.zeros_(encoder.mode_shift)
    assert cg.sample(500).latent_log_ratio.abs().max() < 1e-5


@pytest.mark.filterwarnings("default:the encoder learned almost nothing")
def test_z_collapse_is_warned_of():
    cg = model()
    for parameter in cg.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    cg.encoder.mean.requires_grad_(False).apply(
        lambda m: [torch.nn.init.zeros_(p) for p in m.parameters(recurse=False)]
    )
    cg.decoder.requires_grad_(False)
    with pytest.warns(UserWarning, match="z-collapse"):
        fit(cg, **QUICK, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(solved_model(), **QUICK, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps of at least 1, got 0"),
        ({"num_samples": 0}, "expected num_samples of at least 1"),
        ({"evaluate_every": 0}, "expected evaluate_every of at least 1"),
        ({"evaluate_samples": 0}, "expected evaluate_samples of at least 1"),
        ({"patience": 0}, "expected patience of at least 1"),
        ({"learning_rate": 0.0}, "expected a learning rate above 0"),
        ({"learning_rate": math.nan}, "expected a learning rate above 0"),
        ({"clip_norm": 0.0}, "expected clip_norm above 0"),
        ({"warmup": -0.1}, "expected warmup in"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        fit(model(), **options, **QUIET)


@pytest.mark.parametrize(
    "loss",
    [
        TraceMeanField_ELBO(),
        RenyiELBO(),
        WeightPriorELBO(RenyiELBO(), GaussianWeightPrior(), 10.0),
    ],
)
def test_losses_that_are_wrong_or_not_differentiable_are_refused(loss):
    with pytest.raises(ValueError, match="expected an ELBO"):
        fit(model(), **QUICK, **QUIET, loss=loss)


def test_a_missing_folder_is_found_before_training(tmp_path):
    energy = model().target.energy
    with pytest.raises(FileNotFoundError, match="expected the folder of"):
        fit(model(), **QUICK, **QUIET, checkpoint=tmp_path / "none" / "state.pt")
    assert energy.calls == 0


def test_the_default_optimiser_leaves_long_stacks_alone():
    """Preconditioned dimensions of layers, of short stacks and of long ones."""
    shapes = {(256, 40): [256, 40], (6, 10, 300): [6, 10, 300], (256, 2, 7): [2, 7]}
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = default_optimizer(parameters, 1e-3)
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    found = [[len(g) for g in optimizer.state[p]["GG"] if len(g)] for p in parameters]
    assert found == list(shapes.values())
    assert len(default_optimizer(parameters[:2], 1e-3).param_groups) == 1
