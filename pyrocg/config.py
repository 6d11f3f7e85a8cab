"""The options of a run as frozen dataclasses: defaults, limits, TOML in and out. Imports no torch.

A value comes from the command line, else from the file, else from the preset of the system, else
from the kind (of model, schedule, ...). An option that does not apply to the chosen kind is None,
and refused when given.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pyrocg.option import Option, option, options_of
from pyrocg.presets import FIRST_KIND, KINDS, PRESETS

__all__ = [
    "Config",
    "SECTIONS",
    "SYSTEMS",
    "options",
    "read_toml",
    "resolve",
    "to_toml",
]

Values: TypeAlias = Mapping[str, Mapping[str, Any]]

SYSTEMS = ("double-well", "alanine-dipeptide", "pdb", "peptide")


@dataclass(frozen=True)
class SystemOptions:
    """[system]: whose Boltzmann density is learned."""

    kind: str = option("what to learn", choices=SYSTEMS)
    tilt: float | None = option("c of the double well; 0 makes it symmetric")
    pdb: str | None = option("structure file with all hydrogens (PDB or mmCIF)")
    peptide: str | None = option("one-letter sequence of a capped peptide, such as AAA")
    forcefield: tuple[str, ...] | None = option(
        "OpenMM force-field files, or amber96-obc or ff96-obc1 for alanine-dipeptide"
    )
    temperature: float | None = option("in K", above=0)
    engine: str | None = option("what computes energies", choices=("auto", "compiled", "openmm"))
    platform: str | None = option("OpenMM platform (Reference, CPU, CUDA, ...); engine openmm")
    workers: int | None = option("processes that share a batch; engine openmm", low=1)


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


@dataclass(frozen=True)
class Config:
    """Every option of a run, resolved."""

    system: SystemOptions
    coordinates: CoordinatesOptions
    model: ModelOptions
    schedule: ScheduleOptions
    fit: FitOptions
    predict: PredictOptions
    posterior: PosteriorOptions
    run: RunOptions


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


def resolve(*layers: Values) -> Config:
    """Merge layers of options, the first the strongest, with preset and defaults; validate all.

    Raises:
        ValueError: a section, key, type or value is not as it should be, or does not apply.

    Example:
        >>> resolve({"system": {"kind": "double-well"}, "fit": {"steps": 10}}).fit.steps
        10
    """
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in reversed(layers):
        for section, values in _checked(layer).items():
            given[section] |= values
    system = given["system"].get("kind") or _implied_system(given["system"])
    given["system"]["kind"] = system
    given["coordinates"].setdefault("kind", "identity" if system == "double-well" else "internal")
    sections = {}
    for section in SECTIONS:
        kinds = KINDS[section]
        has_kind = "" not in kinds
        kind = given[section].get("kind", FIRST_KIND.get(section, ""))
        preset = PRESETS[system].get(section, {}).get(kind, {})
        _refuse_foreign(section, kind, given[section])
        values = dict.fromkeys(options(section)) | kinds[kind] | preset | given[section]
        sections[section] = SECTIONS[section](**(values | ({"kind": kind} if has_kind else {})))
    config = Config(**sections)
    _check_together(config)
    return config


def read_toml(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read a file of options; :func:`resolve` validates them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a configuration file at {path}, found no such file")
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected TOML in {path}, got: {error}") from error


def to_toml(config: Config) -> str:
    """Return the configuration as TOML that resolves to itself; what does not apply is left out."""
    import tomli_w

    sections = {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in asdict(config).items()
    }
    return tomli_w.dumps(sections)


def _checked(layer: Values) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for section, values in layer.items():
        if section not in SECTIONS:
            raise ValueError(_unknown("section", f"[{section}]", [f"[{s}]" for s in SECTIONS]))
        if not isinstance(values, Mapping):
            raise ValueError(f"{section}: expected a table [{section}], got {values!r}")
        known = options(section)
        for key in values:
            if key not in known:
                names = [f"{section}.{k}" for k in known]
                raise ValueError(_unknown("key", f"{section}.{key}", names))
        found[section] = {key: known[key].check(value) for key, value in values.items()}
    return found


def _unknown(what: str, got: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{got}: expected a known {what} ({', '.join(known)}), got {got}{hint}"


def _implied_system(values: Mapping[str, Any]) -> str:
    for kind in ("pdb", "peptide"):
        if kind in values:
            return kind
    raise ValueError(
        "system.kind: expected double-well, alanine-dipeptide, or a structure (--pdb, --peptide), "
        "got none"
    )


def _refuse_foreign(section: str, kind: str, given: Mapping[str, Any]) -> None:
    """Refuse an option that would be read and never used."""
    for key in given:
        if key != "kind" and key not in KINDS[section][kind]:
            homes = [k for k, values in KINDS[section].items() if key in values]
            raise ValueError(
                f"{section}.{key}: expected only with {section}.kind {' or '.join(homes)}, "
                f"got it with {kind}"
            )


def _check_together(config: Config) -> None:
    system, toy = config.system, config.system.kind == "double-well"
    for key in ("pdb", "peptide"):
        if system.kind == key and getattr(system, key) is None:
            raise ValueError(f"system.{key}: expected a value for system.kind {key}, got none")
    if toy != (config.coordinates.kind == "identity"):
        expected = "identity" if toy else "internal or cartesian"
        raise ValueError(
            f"coordinates.kind: expected {expected} for {system.kind}, "
            f"got {config.coordinates.kind}"
        )
    if system.engine != "openmm" and (system.platform or system.workers):
        raise ValueError(
            "system.engine: expected openmm with system.platform or system.workers, "
            f"got {system.engine}"
        )
    draws = config.posterior.weight_draws or 0
    if draws > config.predict.num_samples:
        raise ValueError(
            f"posterior.weight_draws: expected at most {config.predict.num_samples}, as there are "
            f"samples, got {draws}"
        )
    if config.model.kind == "paper" and system.kind not in ("double-well", "alanine-dipeptide"):
        raise ValueError(
            "model.kind: expected basins or gaussian, the paper has networks for double-well and "
            f"alanine-dipeptide only, got paper with {system.kind}"
        )
    adaptive = config.schedule.kind in ("adaptive", "relative")
    if adaptive and config.fit.steps < 2 * config.fit.evaluate_every:
        raise ValueError(
            "fit.evaluate_every: expected at most half of fit.steps with an adaptive schedule, "
            f"which moves at evaluations, got {config.fit.evaluate_every} of {config.fit.steps}"
        )
