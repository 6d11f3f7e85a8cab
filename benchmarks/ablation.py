"""What is each part of the recipe for alanine dipeptide worth?

Run: python benchmarks/ablation.py [--seeds 0] [--steps 1500] [--rows rows.jsonl]

Trains models that differ from the default in one thing each, with as many samples, and predicts the
same from all. With --rows the results are kept in a file; what it has is not run again. The last
rows start from the paper's Gaussian decoder and go up to the default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pyrocg
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.config import resolve
from pyrocg.geometry import basin_populations
from pyrocg.objectives import AnalyticEntropyELBO, ForwardKLELBO, PathGradientELBO
from pyrocg.system import (
    build_basins,
    build_model,
    build_optimizer,
    build_schedule,
    build_system,
)
from pyrocg.weights import component_shares

BASINS = ("left", "alpha", "beta")
BATCH = 252  # of the default


@dataclass(frozen=True)
class Variant:
    """What differs from the default: options by section, the loss, and whose weights predict."""

    model: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    coordinates: dict[str, Any] = field(default_factory=dict)
    loss: Callable[[], ELBO] = PathGradientELBO
    averaged: bool = False


GAUSSIAN = {"kind": "gaussian"}
ADAPTIVE = {"kind": "adaptive"}
CARTESIAN = {"kind": "cartesian"}
VARIANTS = {
    "default": Variant(),
    "Adam, learning rate 1e-3, in place of SOAP": Variant(
        fit={"optimizer": "adam", "learning_rate": 1e-3}
    ),
    "gradients clipped at a norm of 100": Variant(fit={"clip_norm": 100.0}),
    "batches of 64, as many samples": Variant(fit={"num_samples": 64, "evaluate_every": 400}),
    "batches of 1008, as many samples": Variant(fit={"num_samples": 1008, "evaluate_every": 25}),
    "weights averaged over the last 100 steps or so": Variant(averaged=True),
    "Trace_ELBO in place of path gradients": Variant(loss=Trace_ELBO),
    "AnalyticEntropyELBO in place of path gradients": Variant(loss=AnalyticEntropyELBO),
    "ForwardKLELBO in place of the reverse KL": Variant(loss=ForwardKLELBO),
    "minima alone, no covering centres": Variant(model={"cover": 0.0}),
    "8 couplings of 192 units": Variant(model={"n_couplings": 8, "hidden": (192, 192)}),
    "2 couplings": Variant(model={"n_couplings": 2}),
    "z of 1 dimension": Variant(model={"latent_dim": 1}),
    "z of 4 dimensions": Variant(model={"latent_dim": 4}),
    "tempered linearly from t = 0.5": Variant(schedule={"kind": "linear", "start": 0.5}),
    "tempered adaptively from t = 0.5": Variant(schedule={"kind": "adaptive", "start": 0.5}),
    "one component: Gaussian decoder, internal coordinates": Variant(model=GAUSSIAN),
    "the same, tempered adaptively": Variant(model=GAUSSIAN, schedule=ADAPTIVE),
    "the same, Cartesian coordinates": Variant(
        model=GAUSSIAN, schedule=ADAPTIVE, coordinates=CARTESIAN
    ),
    "the paper's networks, Adam and rule of tempering, Cartesian": Variant(
        model={"kind": "paper"},
        fit={"optimizer": "adam", "learning_rate": 1e-3},
        schedule={"kind": "relative"},
        coordinates=CARTESIAN,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=100_000, help="to predict from")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--rows", type=Path, help="file that keeps the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = []
    if options.rows and options.rows.exists():
        known = [json.loads(line) for line in options.rows.read_text().splitlines()]
    head = "what differs | seed | t | ELBO | log Z - ELBO | ESS % | k-hat | "
    print(f"| {head}" + " | ".join(f"{name} %" for name in BASINS) + " | energy calls |")
    print("|" + "---|" * (8 + len(BASINS)))
    for name in options.variants:
        for seed in options.seeds:
            key = {"variant": name, "seed": seed, "steps": options.steps}
            key["samples"] = options.samples
            row = next((r for r in known if key.items() <= r.items()), None)
            if row is None:
                row = key | measured(VARIANTS[name], seed, options)
                if options.rows:
                    with options.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            print(line(row), flush=True)


class Average:
    """The average of a model's weights over its last 100 steps or so."""

    def __init__(self, model: CoarseGrainedModel) -> None:
        self.model, self.mean = model, AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def __call__(self) -> bool:
        """Take a step into account; false, as the training goes on."""
        self.mean.update_parameters(self.model)
        return False

    def take_over(self) -> None:
        """Put the average into the model, with the shares of its components."""
        averaged = parameters_to_vector(self.mean.module.parameters())
        vector_to_parameters(averaged, self.model.parameters())
        prior = self.model.prior
        samples = [self.model.sample(1024) for _ in range(10)]
        log_w = torch.cat([s.log_weights for s in samples])
        component = torch.cat([s.latents["component"] for s in samples])
        prior.set_shares(component_shares(log_w, component, prior.shares))


def measured(variant: Variant, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and predict."""
    steps = options.steps * BATCH // variant.fit.get("num_samples", BATCH)
    config = resolve(
        {
            "system": {"kind": "alanine-dipeptide"},
            "coordinates": variant.coordinates,
            "model": variant.model,
            "schedule": variant.schedule,
            "fit": {"steps": steps, "seed": seed, **variant.fit},
        }
    )
    system = build_system(config)
    basins = build_basins(config, system) if config.model.kind == "basins" else None
    model = build_model(config, system, basins)
    given = {name: value for name, value in vars(config.fit).items() if name != "optimizer"}
    average = Average(model) if variant.averaged else None
    result = pyrocg.fit(
        model,
        optimizer=build_optimizer(config.fit),
        loss=variant.loss(),
        schedule=build_schedule(config.schedule),
        progress=False,
        interrupted=average,
        **given,
    )
    if average is not None:
        average.take_over()
    assert system.molecule is not None
    chosen = basin_populations(system.molecule)
    found = pyrocg.predict(model, chosen, options.samples, seed=1000 + seed, progress=False)
    return {
        "t": result.history["t"][-1],
        "elbo": found.elbo,
        "log_z": found.log_z,
        "ess": found.ess,
        "pareto_k": found.pareto_k,
        "calls": result.energy_calls,
        **{name: found.estimate(f"population_{name}").mean for name in BASINS},
    }


def line(row: dict[str, Any]) -> str:
    cells = [
        row["variant"],
        str(row["seed"]),
        f"{row['t']:.3g}",
        f"{row['elbo']:.3f}",
        f"{row['log_z'] - row['elbo']:.3f}",
        f"{100 * row['ess']:.2f}",
        f"{row['pareto_k']:.2f}",
        *(f"{100 * row[name]:.3f}" for name in BASINS),
        f"{row['calls']:.3g}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
