"""The sections of a run's options as frozen dataclasses: what can be set, within what limits."""

from __future__ import annotations

from dataclasses import dataclass

from pyrocg.option import Option, option, options_of

__all__ = [
    "CoordinatesOptions",
    "FitOptions",
    "ModelOptions",
    "PosteriorOptions",
    "PredictOptions",
    "RunOptions",
    "SECTIONS",
    "SYSTEMS",
    "ScheduleOptions",
    "SystemOptions",
    "options",
]

SYSTEMS = ("double-well", "alanine-dipeptide", "pdb", "peptide")


@dataclass(frozen=True)
class SystemOptions:
    """[system]: whose Boltzmann density is learned."""

    kind: str = option("what to learn", choices=SYSTEMS)
    tilt: float | None = option("c of the double well; 0 makes it symmetric")
    pdb: str | None = option("structure file with all hydrogens (PDB or mmCIF)")
    peptide: str | None = option("one-letter sequence of a capped peptide, such as AAA")
    forcefield: tuple[str, ...] | None = option(
        "OpenMM force-field files; amber96-obc and ff96-obc1 stand for two of them each"
    )
    temperature: float | None = option("in K", above=0)
    engine: str | None = option(
        "what computes energies; copies: forces of whole batches at once, for GPUs",
        choices=("auto", "compiled", "openmm", "copies"),
    )
    platform: str | None = option("OpenMM platform (Reference, CPU, CUDA, ...); engine openmm")
    workers: int | None = option("processes that share a batch; engine openmm", low=1)
    energy_cap: float | None = option(
        "kT above the energy of the given structure from where training sees it compressed",
        above=0,
        infinity="never",
    )


@dataclass(frozen=True)
class CoordinatesOptions:
    """[coordinates]: the variables without rigid motion."""

    kind: str = option(
        "reduced coordinates (a toy has its own)",
        "coordinates",
        choices=("identity", "internal", "cartesian"),
    )


@dataclass(frozen=True)
class ModelOptions:
    """[model]: prior, decoder and encoder."""

    kind: str = option(
        "basins: a mixture latent, one component for each basin, with a coupling decoder; "
        "gaussian: Gaussian decoder and encoder; paper: the same in the paper's sizes, of "
        "double-well and alanine-dipeptide",
        "model",
        choices=("basins", "gaussian", "paper"),
    )
    latent_dim: int = option("number of collective variables z", low=1)
    hidden: tuple[int, ...] | None = option("sizes of the hidden layers", low=1)
    starts: int | None = option("of the search for basins", low=1)
    share: float | None = option(
        "fraction of the basins' variance that z explains at the start", above=0, below=1
    )
    basin_steps: int | None = option("of each minimisation in the search for basins", low=1)
    separation: float | None = option("minima closer than this, rad, are one basin", above=0)
    max_free_energy: float | None = option(
        "minima so many nats above the lowest are left out", above=0
    )
    cover: float | None = option(
        "farthest that a populated point is from a basin, rad; 0: minima alone", low=0
    )
    max_energy: float | None = option(
        "a point is populated up to so many nats above the lowest minimum", above=0
    )
    max_basins: int | None = option("at most so many basins", low=1)
    concentration: float | None = option("sharpness of the partition into basins", above=0)
    n_couplings: int | None = option("coupling layers of the decoder", low=1)
    n_modes: int | None = option("Gaussians of the encoder", low=1)
    variance: str | None = option("of the Gaussians", choices=("network", "constant"))


@dataclass(frozen=True)
class ScheduleOptions:
    """[schedule]: of the tempering factor t."""

    kind: str = option(
        "tempering; relative is the paper's rule",
        "schedule",
        choices=("fixed", "linear", "geometric", "adaptive", "relative"),
    )
    start: float | None = option("first t", "schedule-start", above=0, high=1)
    until: float | None = option(
        "fraction of the steps at which t is 1", "schedule-until", above=0, high=1
    )
    max_kl_increase: float | None = option("bound of a step in t, nats", above=0)
    min_ess: float | None = option("bound on the conditional ESS", above=0, below=1)
    max_relative_increase: float | None = option(
        "bound of a step in t, as a multiple of the KL divergence", above=0
    )
    max_step: float | None = option("largest step in t", above=0, high=1)
    min_step: float | None = option("smallest step in t", above=0, high=1)
    shrink: float | None = option("factor of a step that breaks a bound", above=0, below=1)


@dataclass(frozen=True)
class FitOptions:
    """[fit]: the training."""

    steps: int = option("training steps", low=1)
    num_samples: int = option("samples, and energy calls, in each step", low=1)
    optimizer: str = option("optimiser", choices=("soap", "adam"))
    learning_rate: float = option("peak learning rate", above=0)
    clip_norm: float = option("bound on the norm of the gradient", above=0)
    warmup: float = option("fraction of the steps in which the rate warms up", low=0, high=1)
    evaluate_every: int = option("steps between evaluations", low=1)
    evaluate_samples: int = option("samples of an evaluation", low=1)
    patience: int | None = option("evaluations without progress before it stops early", low=1)
    seed: int = option("of basins, networks and training", low=0)
    compile: bool = option("compile the training step; pays beyond some 5000 steps")
    checkpoint_seconds: float = option("shortest time between two checkpoints", low=0)


@dataclass(frozen=True)
class PredictOptions:
    """[predict]: samples and intervals."""

    num_samples: int = option("samples to predict from", "predict-samples", low=1)
    encoder_draws: int = option("draws of z that each weight is averaged over", low=0)
    level: float = option("probability that an interval holds", above=0, below=1)
    n_draws: int = option("bootstrap draws behind each interval", "predict-draws", low=2)
    batch: int = option("samples drawn at a time", "predict-batch", low=1)
    seed: int = option("of the samples", "predict-seed", low=0)
    state: str = option("of the training", choices=("last", "best"))


@dataclass(frozen=True)
class PosteriorOptions:
    """[posterior]: of the decoder's weights, of which the prediction is then made."""

    kind: str = option(
        "of the weights: laplace, at the trained weights, or swag, by further training",
        "posterior",
        choices=("none", "laplace", "swag"),
    )
    weight_draws: int | None = option("draws of the decoder's weights", low=2)
    structure: str | None = option(
        "of the curvature",
        "posterior-structure",
        choices=("diagonal", "low_rank", "last_layer", "full"),
    )
    num_samples: int | None = option("samples behind the curvature", "posterior-samples", low=2)
    steps: int | None = option("further training steps", "posterior-steps", low=200)
    learning_rate: float | None = option(
        "of the further training, constant", "posterior-learning-rate", above=0
    )


@dataclass(frozen=True)
class RunOptions:
    """[run]: the machine and the files."""

    threads: int | None = option(
        "threads of torch; default OMP_NUM_THREADS, else 1, which is fastest for small networks",
        low=1,
    )
    device: str = option("what networks and energies run on", choices=("cpu", "cuda"))
    save_samples: bool = option("write the sampled configurations to samples.npz")


SECTIONS: dict[str, type] = {
    "system": SystemOptions,
    "coordinates": CoordinatesOptions,
    "model": ModelOptions,
    "schedule": ScheduleOptions,
    "fit": FitOptions,
    "predict": PredictOptions,
    "posterior": PosteriorOptions,
    "run": RunOptions,
}


def options(section: str) -> dict[str, Option]:
    """Return the options of a section by key."""
    return options_of(section, SECTIONS[section])
