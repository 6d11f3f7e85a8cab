"""How noisy are the gradients of each estimator, and do batches that grow pay?

Run: python benchmarks/gradients.py FOLDER
     python benchmarks/gradients.py FOLDER --stages 126:1000 252:500 504:250

FOLDER is that of a run of alanine dipeptide; its options and basins are used, not its weights. The
first command trains anew with constant batches and measures gradients at some of the steps. The
second trains in stages of BATCH:STEPS and prints the divergence that is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from annealing import importance
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

import pyrocg
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import seeded
from pyrocg.objectives import AnalyticEntropyELBO, PathGradientELBO
from pyrocg.run import untrained_model
from pyrocg.runfolder import RunFolder
from pyrocg.system import build_system
from pyrocg.weights import ess, log_mean_exp

STEPS = (0, 50, 150, 400, 800, 1200, 1500)
ESTIMATORS = (PathGradientELBO, Trace_ELBO, AnalyticEntropyELBO)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="+", metavar="BATCH:STEPS")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="where to measure")
    parser.add_argument("--draws", type=int, default=40, help="gradients at each")
    parser.add_argument("--samples", type=int, default=50_000, help="for the divergence")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, seed = untrained(options.folder)
    if options.stages:
        staged(model, seed, [tuple(map(int, s.split(":"))) for s in options.stages], options)
    else:
        noise(model, seed, options)


def untrained(path: Path) -> tuple[CoarseGrainedModel, int]:
    """The model of a run before training, and the run's seed."""
    folder = RunFolder.open(path)
    config = folder.config()
    model, _ = untrained_model(folder, config, build_system(config))
    return model, config.fit.seed


# Noise


def noise(model: CoarseGrainedModel, seed: int, options: argparse.Namespace) -> None:
    print("| step | estimator | batch | variance | ratio | scaled ratio | s. d. of the loss |")
    print("|" + "---|" * 7)
    last, steps = max(options.steps), 0

    def measured() -> bool:
        nonlocal steps
        if steps in options.steps:
            every = ESTIMATORS if steps in (0, last) else ESTIMATORS[:1]
            for estimator in every:
                row(model, steps, estimator(), 252, options.draws)
            for batch in (63, 1008) if steps else ():
                row(model, steps, PathGradientELBO(), batch, options.draws)
        steps += 1
        return False

    measured()
    pyrocg.fit(model, last, 252, seed=seed, progress=False, interrupted=measured)


def row(model: CoarseGrainedModel, step: int, loss: ELBO, n: int, draws: int) -> None:
    with seeded(0, model.parameters()):
        values, found = zip(*gradients(model, loss, n, draws), strict=True)
    g = torch.stack(found)
    scale = g.square().mean(0).sqrt() + 1e-12
    variance, ratio = signal(g)
    cells = [str(step), type(loss).__name__, str(n), f"{variance:.3g}", f"{ratio:.3g}"]
    cells += [f"{signal(g / scale)[1]:.3g}", f"{torch.stack(values).std():.3g}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def gradients(
    model: CoarseGrainedModel, loss: ELBO, n: int, draws: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Losses for each sample and their gradients."""
    elbo = loss(model.model, model.guide)
    parameters = [p for p in elbo.parameters() if p.requires_grad]
    for _ in range(draws):
        value = elbo(n) / n
        parts = torch.autograd.grad(value, parameters)
        yield value.detach().double(), torch.cat([p.flatten() for p in parts]).double()


def signal(g: Tensor) -> tuple[float, float]:
    """Variance over draws, of all parameters together, and the squared norm of the mean over it."""
    variance = g.var(0).sum()
    squared = g.mean(0).square().sum() - variance / len(g)
    return float(variance), float(squared / variance)


# Stages


class Staged(PathGradientELBO):
    """Takes its batches from stages, whatever number of samples it is asked for."""

    def __init__(self, stages: list[Any]) -> None:
        super().__init__()
        self.batches = iter([n for n, steps in stages for _ in range(steps)])

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        batch = next(self.batches)
        return super().differentiable_loss(model, guide, batch) * (args[0] / batch)


def staged(
    model: CoarseGrainedModel, seed: int, stages: list[Any], options: argparse.Namespace
) -> None:
    steps = sum(n for _, n in stages)
    found = pyrocg.fit(
        model,
        steps,
        252,
        seed=seed,
        loss=Staged(stages),
        evaluate_every=max(1, steps // 15),
        progress=False,
    )
    _, joint = importance(model, options.samples, 0, seed=1)
    _, log_w = importance(model, options.samples, 4, seed=1)
    kl = float(log_mean_exp(log_w) - joint.mean())
    error = float(joint.std()) / len(joint) ** 0.5
    print(
        f"{options.stages}: {steps} steps, {found.energy_calls} energy calls, KL {kl:.4f} ± "
        f"{error:.4f} nats, ESS {100 * float(ess(log_w)):.1f} %"
    )


if __name__ == "__main__":
    main()
