"""The options of a run, resolved from layers, with TOML in and out. Imports no torch.

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

from pyrocg.presets import FIRST_KIND, KINDS, PRESETS
from pyrocg.sections import (
    SECTIONS,
    CoordinatesOptions,
    FitOptions,
    ModelOptions,
    PosteriorOptions,
    PredictOptions,
    RunOptions,
    ScheduleOptions,
    SystemOptions,
    options,
)

__all__ = ["Config", "read_toml", "resolve", "to_toml"]

Values: TypeAlias = Mapping[str, Mapping[str, Any]]


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
