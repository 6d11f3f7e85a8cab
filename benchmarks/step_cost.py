"""Where does a training step go: decoder, coordinates, energy, encoder, Pyro, optimiser?

Run: python benchmarks/step_cost.py [--num-samples 252] [--threads 1]

The whole step is timed by itself; each part is timed by itself too, forward and backward, on the
same batch. What is left over is Pyro's handlers and checks. Medians of interleaved repeats of ten
steps each: the optimiser renews its eigenvectors at every tenth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import pyrocg
from pyrocg.compiled_loss import CompiledLoss, backward
from pyrocg.training import default_optimizer

TEN = 10


def parts(model: pyrocg.CoarseGrainedModel, n: int) -> dict[str, Callable[[], None]]:
    """Callables that do one part of a step each, forward and backward."""
    samples = model.sample(n)
    z, k = samples.latents["z"], samples.latents["component"]
    elbo = pyrocg.PathGradientELBO()(model.model, model.guide)
    optimizer = default_optimizer(elbo.parameters(), 1e-9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (elbo(n) / n).backward()
        optimizer.step()

    def decoder() -> None:
        distribution = model.decoder(z, k)
        u = distribution.rsample()
        (distribution.log_prob(u).sum() + u.sum()).backward()

    def frozen_density() -> None:
        u = samples.u.clone().requires_grad_()
        model.decoder(z, k).log_prob(u).sum().backward()

    def coordinates() -> None:
        x, log_abs_det = model.coordinates(samples.u.clone().requires_grad_())
        (x.sum() + log_abs_det.sum()).backward()

    def energy() -> None:
        model.target.log_prob(samples.x.clone().requires_grad_()).sum().backward()

    def encoder() -> None:
        u = samples.u.clone().requires_grad_()
        log_r = model.encoder.encoder(u, k).log_prob(z) + model.encoder.partition(u).log_prob(k)
        log_r.sum().backward()

    return {
        "whole step": step,
        "decoder": decoder,
        "decoder density, frozen": frozen_density,
        "coordinates": coordinates,
        "energy": energy,
        "encoder": encoder,
        "optimiser": optimizer.step,
        "loss and gradients": lambda: backward(elbo, n),
        "loss and gradients, compiled": CompiledLoss(elbo, model.target, n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-samples", type=int, default=252)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    molecule = pyrocg.alanine_dipeptide()
    target = pyrocg.BoltzmannTarget(pyrocg.molecular_energy(molecule), temperature=330.0)
    model = pyrocg.CoarseGrainedModel.from_basins(target, pyrocg.InternalCoordinates(molecule))
    timed = parts(model, options.num_samples)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(options.repeats + 1):
        for name, part in timed.items():
            started = time.perf_counter()
            for _ in range(TEN):
                part()
            if repeat:
                seconds[name].append((time.perf_counter() - started) / TEN)
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    whole = medians.pop("whole step")
    plain = medians.pop("loss and gradients")
    compiled = medians.pop("loss and gradients, compiled")
    print("| part | ms | share % |\n|---|---|---|")
    for name, value in [*medians.items(), ("Pyro and the rest", whole - sum(medians.values()))]:
        print(f"| {name} | {value:.2f} | {100 * value / whole:.0f} |")
    print(f"| whole step of {options.num_samples} | {whole:.2f} | 100 |")
    print(f"| loss and gradients, all of the step but the optimiser | {plain:.2f} | |")
    print(f"| the same, compiled | {compiled:.2f} | |")


if __name__ == "__main__":
    main()
