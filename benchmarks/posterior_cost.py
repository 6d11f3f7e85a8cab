"""What does a posterior over the decoder's weights cost, and do its intervals hold the truth?

Run: python benchmarks/posterior_cost.py [RUN] [--num-samples 100000] [--weight-draws 20]
     python benchmarks/posterior_cost.py --parts coverage [--seeds 50]

RUN is a folder of `pyrocg fit`; without one the quickstart's model is trained first. Every part
runs in a process of its own, whose peak memory is its own: fitting each posterior, and predicting
without one and with draws of each.

The coverage is that of a linear-Gaussian model, which is trained for many seeds: how many of the
exact averages do the intervals hold, without a posterior and with each.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import pyrocg
from pyrocg.observables import coordinate
from pyrocg.run_prediction import samples_of_training
from pyrocg.system import System

POSTERIORS = ("diagonal", "low_rank", "swag")


# Cost


def trained(run: Path) -> tuple[pyrocg.CoarseGrainedModel, System, int]:
    """The model of a run in its last state, its system, and the samples it was trained on."""
    found = pyrocg.load_run(run)
    torch.set_num_threads(found.config.run.threads or 1)
    return found.model, found.system, samples_of_training(found.config, found.counters)


def fit_posterior(
    kind: str, model: pyrocg.CoarseGrainedModel, n: int, steps: int
) -> pyrocg.WeightPosterior:
    if kind == "swag":
        return pyrocg.SWAGPosterior.fit(model, steps=steps)
    return pyrocg.LaplacePosterior.fit(model, n, structure=kind)


def measure(part: str, run: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in this process and return what it took."""
    model, system, n = trained(run)
    energy = system.target.energy.exact
    model.sample(100)  # compiles
    calls, before = energy.calls, memory()
    wall, processor = time.perf_counter(), time.process_time()
    task, kind = part.split(":")
    found: dict[str, Any] = {}
    if task == "fit":
        posterior = fit_posterior(kind, model, n, options.steps)
        for name in ("gibbs_scale", "prior_scale", "excess"):
            found[name] = getattr(posterior, name, None)
        took = time.perf_counter() - wall, time.process_time() - processor, memory()
        posterior.save(folder / f"{kind}.pt")
    else:
        posterior = None if kind == "none" else pyrocg.load_posterior(folder / f"{kind}.pt")
        prediction = pyrocg.predict(
            model,
            system.observables,
            options.num_samples,
            posterior=posterior,
            n_weight_draws=options.weight_draws,
            progress=False,
        )
        drawn = time.perf_counter() - wall, time.process_time() - processor
        found |= {"ess": prediction.ess, "elbo": prediction.elbo, "log_z": prediction.log_z}
        plain, corrected = prediction.estimates(False), prediction.estimates()
        found["cautions"] = [c.code for c in prediction.warnings]
        found["left"], found["left_plain"] = (
            {k: v for k, v in vars(each["population_left"]).items() if k != "draws"}
            for each in (corrected, plain)
        )
        took = time.perf_counter() - wall, time.process_time() - processor, memory()
        found["drawing"] = drawn[1]
    wall_s, processor_s, peak = took
    return found | {
        "part": part,
        "seconds": processor_s,
        "wall": wall_s,
        "peak": peak,
        "more": peak - before,
        "calls": energy.calls - calls,
    }


def memory() -> float:
    """Peak of this process so far, MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def costs(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run = options.run
        if run is None:
            run = Path(temporary, "run")
            command = [
                sys.executable,
                "-m",
                "pyrocg",
                "fit",
                "alanine-dipeptide",
                "--out",
                str(run),
            ]
            subprocess.run(command, check=True)
        parts = ["predict:none"]
        for kind in options.posteriors:
            parts += [f"fit:{kind}", f"predict:{kind}"]
        print(
            "| part | processor s | of it drawing | wall s | peak MiB | of it its own "
            "| energy calls | N | prior | expected excess |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        rows = []
        for part in parts:
            row = in_own_process(part, run, temporary, options)
            rows.append(row)
            drawing = row.get("drawing")
            fitted = [row.get(name) for name in ("gibbs_scale", "prior_scale", "excess")]
            cells = " | ".join("" if value is None else f"{value:.3g}" for value in fitted)
            print(
                f"| {part} | {row['seconds']:.1f} | {'' if drawing is None else f'{drawing:.1f}'} "
                f"| {row['wall']:.1f} | {row['peak']:.0f} | {row['more']:.0f} | {row['calls']} | "
                f"{cells} |",
                flush=True,
            )
        print("\n| weights | ESS % | log Z - ELBO | left %, corrected | parts | plain | parts |")
        print("|---|---|---|---|---|---|---|")
        for row in rows:
            if "ess" in row:
                print(result_row(row), *row["cautions"])


def in_own_process(
    part: str, run: Path, folder: str, options: argparse.Namespace
) -> dict[str, Any]:
    command = [sys.executable, __file__, str(run), "--parts", part, "--folder", folder]
    command += ["--num-samples", str(options.num_samples), "--steps", str(options.steps)]
    command += ["--weight-draws", str(options.weight_draws)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def result_row(row: dict[str, Any]) -> str:
    cells = [row["part"].split(":")[1], f"{100 * row['ess']:.1f}"]
    cells.append(f"{row['log_z'] - row['elbo']:.4f}")
    for found in (row["left"], row["left_plain"]):
        low, high = (100 * edge for edge in found["interval"])
        cells.append(f"{100 * found['mean']:.3f} [{low:.3f}, {high:.3f}]")
        parts = (found[name] for name in ("posterior", "monte_carlo", "weights"))
        cells.append(", ".join(f"{100 * value:.4f}" for value in parts))
    return "| " + " | ".join(cells) + " |"


# Coverage

LOADINGS, NOISE = torch.tensor([1.0, -0.8, 0.5]).double(), torch.tensor([0.3, 0.5, 0.4]).double()
COVARIANCE = torch.outer(LOADINGS, LOADINGS) + torch.diag(NOISE)  # which the model can represent
MEMBERS = 8


def linear_gaussian(seed: int, steps: int, num_samples: int) -> pyrocg.CoarseGrainedModel:
    """A factor model u = W z + b + noise, trained from a start near the best weights."""
    torch.manual_seed(seed)
    coordinates = pyrocg.IdentityCoordinates(3)
    energy = pyrocg.Harmonic(3, torch.linalg.inv(COVARIANCE))
    model = pyrocg.CoarseGrainedModel(
        pyrocg.BoltzmannTarget(energy, beta=1.0),
        coordinates,
        pyrocg.StandardNormalPrior(1),
        pyrocg.GaussianDecoder(coordinates.circular, 1, (), (), variance="constant"),
        pyrocg.GaussianEncoder(coordinates.circular, 1, (), (), variance="constant"),
    ).double()
    with torch.no_grad():
        model.decoder.mean.layers[0].weight.copy_(LOADINGS[:, None])
        model.decoder.log_variance.value.copy_(NOISE.log() + 0.5)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    pyrocg.fit(model, steps, num_samples, learning_rate=0.01, seed=seed, progress=False)
    return model


def coverage(options: argparse.Namespace) -> None:
    """Shares of the exact averages that 95 % intervals hold, by posterior."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    steps, num_samples = options.fit_steps, 64
    observables = [coordinate(i) for i in range(3)]
    observables += [
        pyrocg.Observable(f"square{i + 1}", "", lambda x, i=i: x[:, i] ** 2) for i in range(3)
    ]
    exact = [0.0] * 3 + COVARIANCE.diagonal().tolist()
    models = [linear_gaussian(s, steps, num_samples) for s in range(options.seeds + MEMBERS)]
    held: dict[tuple[str, str], list[bool]] = {}
    widths: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        model, n = models[seed], steps * num_samples
        others = models[seed + 1 : seed + 1 + MEMBERS]
        posteriors = {
            "none": None,
            "Laplace, full": pyrocg.LaplacePosterior.fit(
                model, n, structure="full", num_draws=300, seed=seed
            ),
            "SWAG": pyrocg.SWAGPosterior.fit(
                model, 600, num_samples, learning_rate=options.swag_rate, seed=seed
            ),
            f"ensemble of {MEMBERS}": pyrocg.EnsemblePosterior.of(others),
        }
        for name, posterior in posteriors.items():
            draws = MEMBERS if name.startswith("ensemble") else 20
            found = pyrocg.predict(
                model,
                observables,
                20_000,
                posterior=posterior,
                n_weight_draws=draws,
                seed=seed,
                progress=False,
            )
            for corrected in (False, True):
                key = name, "corrected" if corrected else "plain"
                for value, estimate in zip(exact, found.estimates(corrected).values(), strict=True):
                    low, high = estimate.interval
                    held.setdefault(key, []).append(low <= value <= high)
                    widths.setdefault(key, []).append(high - low)
    print("| posterior | average | intervals | 95 % hold | mean width |\n|---|---|---|---|---|")
    for (name, kind), values in held.items():
        share, (low, high) = 100 * sum(values) / len(values), wilson(sum(values), len(values))
        width = sum(widths[name, kind]) / len(values)
        print(
            f"| {name} | {kind} | {len(values)} | {share:.1f} % [{low:.1f}, {high:.1f}] | "
            f"{width:.4f} |"
        )


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, in percent."""
    z = 1.96
    centre, half = k + z**2 / 2, z * (k * (n - k) / n + z**2 / 4) ** 0.5
    return 100 * (centre - half) / (n + z**2), 100 * (centre + half) / (n + z**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a trained run")
    parser.add_argument("--num-samples", type=int, default=100_000)
    parser.add_argument("--weight-draws", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000, help="of SWAG")
    parser.add_argument("--posteriors", nargs="+", choices=POSTERIORS, default=["low_rank", "swag"])
    parser.add_argument("--parts", default="cost", help="cost or coverage")
    parser.add_argument("--seeds", type=int, default=50, help="of the coverage")
    parser.add_argument("--fit-steps", type=int, default=200, help="of its trainings")
    parser.add_argument("--swag-rate", type=float, default=1e-3, help="of its SWAG")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts == "cost":
        costs(options)
    elif options.parts == "coverage":
        coverage(options)
    else:
        print(json.dumps(measure(options.parts, options.run, options.folder, options)))


if __name__ == "__main__":
    main()
