"""Targets with known averages, and runs that are too short for them on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyrocg
from pyrocg import geometry, observables
from pyrocg.basins import Basins, find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.laplace import LaplacePosterior
from pyrocg.prediction import Prediction

REFERENCE = Path(__file__).parent / "references" / "ala2_amber96_obc_330K.json"


@dataclass(frozen=True)
class Case:
    """A target with known averages, and a run that is too short for it.

    Attributes:
        name: in the tables.
        build: from a seed to an untrained model.
        truth: observable and its average, with the standard error of that; 0 where it is exact.
        steps: of the training.
        num_samples: of each step.
        learning_rate: of the training.
        n: samples of a prediction.
        bias_samples: other samples that show how far the model's own averages are off.
    """

    name: str
    build: Callable[[int], CoarseGrainedModel]
    truth: Sequence[tuple[pyrocg.Observable, float, float]]
    steps: int
    num_samples: int = 64
    learning_rate: float = 1e-2
    n: int = 5_000
    bias_samples: int = 20_000

    def trained(self, seed: int, steps: int | None = None) -> CoarseGrainedModel:
        model = self.build(seed)
        pyrocg.fit(
            model,
            self.steps if steps is None else steps,
            self.num_samples,
            learning_rate=self.learning_rate,
            evaluate_every=1000,
            seed=seed,
            progress=False,
        )
        return model

    def posterior(self, model: CoarseGrainedModel, **options: Any) -> LaplacePosterior:
        given = options or {"n_samples": self.steps * self.num_samples}
        return LaplacePosterior.fit(model, num_draws=200, **given)

    def predict(self, model: CoarseGrainedModel, seed: int, **options: Any) -> Prediction:
        found = [observable for observable, _, _ in self.truth]
        n = options.pop("num_samples", self.n)
        return pyrocg.predict(model, found, n, seed=seed, progress=False, **options)


def cases(names: Sequence[str]) -> list[Case]:
    makers = {"double_well": double_well, "mixture": mixture, "harmonic": harmonic}
    return [makers[name]() for name in names]


def toy(energy: Any, latent_dim: int = 1) -> Callable[[int], CoarseGrainedModel]:
    """The recommended model, small; its basins are found once for all seeds."""
    target = pyrocg.BoltzmannTarget(energy, beta=1.0)
    coordinates = pyrocg.IdentityCoordinates(energy.dim)
    found: list[Basins] = []

    def build(seed: int) -> CoarseGrainedModel:
        found[:] = found or [find_basins(target, coordinates, starts=32)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CoarseGrainedModel.from_basins(
                target, coordinates, found[0], latent_dim=latent_dim, n_couplings=2, hidden=(8,)
            )

    return build


def double_well() -> Case:
    well = pyrocg.DoubleWell()
    x1, x2, right = pyrocg.double_well_observables()
    mean = well.mean().tolist()
    truth = [(x1, mean[0], 0.0), (x2, mean[1], 0.0), (right, well.probability_above(), 0.0)]
    return Case("double well", toy(well), truth, steps=30)


def mixture() -> Case:
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.0, -2.5]])
    variances = torch.tensor([[0.5, 0.3], [0.3, 0.6], [0.4, 0.4]])
    energy = pyrocg.GaussianMixture(means, variances, [0.6, 0.3, 0.1])
    above = torch.special.ndtr((means[:, 0] - 0.8) / variances[:, 0].sqrt()).double()
    mean = energy.mean().tolist()
    truth = [
        (observables.coordinate(0), mean[0], 0.0),
        (observables.coordinate(1), mean[1], 0.0),
        (observables.population_above(0.8), float(energy.weights @ above), 0.0),
    ]
    return Case("Gaussian mixture", toy(energy), truth, steps=30)


def harmonic() -> Case:
    """Ten correlated dimensions. Training starts at the exact answer, and noise moves it away."""
    generator = torch.Generator().manual_seed(1)
    loadings = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    covariance = torch.linspace(0.3, 1.5, 10, dtype=torch.float64).diag() + loadings.T @ loadings
    mean = torch.linspace(-0.5, 0.5, 10, dtype=torch.float64)
    stiffness = torch.linalg.inv(covariance)
    energy = pyrocg.Harmonic(10, 0.5 * (stiffness + stiffness.T), mean)
    square = pyrocg.Observable("x1 squared", "", lambda x: np.asarray(x, float)[:, 0] ** 2)
    above = torch.special.ndtr((mean[0] - 0.5) / covariance[0, 0].sqrt())
    truth = [
        (observables.coordinate(0), float(mean[0]), 0.0),
        (observables.coordinate(9), float(mean[9]), 0.0),
        (square, float(covariance[0, 0] + mean[0] ** 2), 0.0),
        (observables.population_above(0.5), float(above), 0.0),
    ]
    return Case("harmonic, 10 dimensions", toy(energy, 2), truth, steps=30, learning_rate=2e-2)


def molecule() -> Case:
    """Alanine dipeptide, whose truth is a simulation with an error of its own."""
    known = json.loads(REFERENCE.read_text())["averages"]
    system = pyrocg.alanine_dipeptide()
    found = (*geometry.basin_populations(system), geometry.radius_of_gyration(system))
    truth = []
    for observable in found:
        name = f"{observable.name}, trans only"
        value = known.get(name, known[observable.name])
        truth.append((observable, value["mean"], value["standard_error"]))
    return Case("alanine dipeptide", peptide_model(system), truth, 200, 126, 5e-3, 10_000, 4_000)


def peptide_model(system: pyrocg.Molecule) -> Callable[[int], CoarseGrainedModel]:
    energy = pyrocg.CompiledEnergy(system, dtype=torch.float32)
    target = pyrocg.BoltzmannTarget(energy, temperature=330)
    coordinates = pyrocg.InternalCoordinates(system)
    found: list[Basins] = []

    def build(seed: int) -> CoarseGrainedModel:
        found[:] = found or [find_basins(target, coordinates)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CoarseGrainedModel.from_basins(target, coordinates, found[0])

    return build
