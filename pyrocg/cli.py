"""The command line: the only place that prints.

Results go to standard output, progress and errors to standard error. Exit codes: 0 success, 1 a
failure while running, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrocg.arguments import given_options, make_parser
from pyrocg.config import Config, read_toml, resolve
from pyrocg.console import note, one_line, one_line_warnings, output_is_closed
from pyrocg.interruption import advice_when_stopped, deferred_interrupt

if TYPE_CHECKING:
    from pyrocg.prediction import Prediction
    from pyrocg.runfolder import RunFolder
    from pyrocg.system import System

__all__ = ["main"]

_BUILT = ("steps", "num_samples", "optimizer")  # what `fit` takes in another form
_MANY_ATOMS = 60
_EXPECTED = (ValueError, OSError, KeyError, FloatingPointError, RuntimeError)


class _InputError(Exception):
    """What the user gave cannot be used; the cause says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = make_parser(COMMANDS).parse_args(argv)
    try:
        with one_line_warnings():
            args.command(args)
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        note(f"interrupted{'; ' + str(error) if str(error) else ''}")
        return 130
    except (_InputError, *_EXPECTED) as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            return 1  # what read the results has ended, as `head` does
        if args.debug:
            traceback.print_exc()
        cause = error.__cause__ if isinstance(error, _InputError) else error
        note(f"error: {one_line(cause)}")
        return 2 if isinstance(error, _InputError) else 1
    return 0


# Commands.


def _quickstart(args: argparse.Namespace) -> None:
    started = time.monotonic()
    args.system = "alanine-dipeptide"
    folder, config, system = _start(args)
    _train(folder, config, system, args.quiet)
    prediction, summary = _predict(folder, config, system, args.quiet, corrected=True)
    folder.write_prediction(prediction, summary, config.run.save_samples)
    _draw(folder, system)
    _print_table(summary, system, time.monotonic() - started)
    print(f"results in {folder.path}")


def _fit(args: argparse.Namespace) -> None:
    folder, config, system = _start(args)
    _train(folder, config, system, args.quiet)
    _print_trained(folder)


def _resume(args: argparse.Namespace) -> None:
    with _input():
        from pyrocg.machine import device_of

        folder, config, system = _opened(args.folder, given_options(args))
        device_of(config.run)
    if folder.is_trained:
        note(f"the training in {folder.path} has ended; nothing to resume")
    else:
        _train(folder, config, system, args.quiet)
    _print_trained(folder)


def _predict_command(args: argparse.Namespace) -> None:
    started = time.monotonic()
    with _input():
        from pyrocg.machine import device_of
        from pyrocg.runfolder import plain

        folder, config, system = _opened(args.folder, given_options(args))
        device_of(config.run)
        if args.trajectory is not None:
            _check_trajectory(args.trajectory, system)
    prediction, summary = _predict(folder, config, system, args.quiet, not args.plain)
    folder.write_prediction(prediction, summary, config.run.save_samples)
    if args.trajectory is not None:
        weights = prediction.save_trajectory(args.trajectory, system.molecule)
        note(f"wrote {args.trajectory} and {weights}")
    if args.json:
        print(json.dumps(plain(summary)))
    else:
        _print_table(summary, system, time.monotonic() - started)


def _plot(args: argparse.Namespace) -> None:
    with _input():
        folder, _, system = _opened(args.folder)
        folder.history()
    for path in _draw(folder, system):
        print(path)


# What the commands are made of.


def _start(args: argparse.Namespace) -> tuple[RunFolder, Config, System]:
    """Resolve the options, build the system and claim the folder."""
    with _input():
        file = read_toml(args.config) if args.config else {}
        from pyrocg.machine import device_of, located, set_threads

        config = located(resolve(given_options(args), file))
        set_threads(config.run)
        device_of(config.run)
        from pyrocg.runfolder import RunFolder
        from pyrocg.system import build_system

        RunFolder.check_free(args.out)
        system = build_system(config)
        return RunFolder.create(args.out, config), config, system


def _opened(path: str, given: dict[str, dict[str, Any]] | None = None) -> Any:
    """The run in a folder, its options with those given now, and its system."""
    from pyrocg.machine import set_threads
    from pyrocg.runfolder import RunFolder

    folder, given = RunFolder.open(path), given or {}
    file = read_toml(folder.config_file)
    if "kind" in given.get("posterior", {}):
        file.pop("posterior", None)  # the options of another kind would be refused
    config = resolve(given, file)
    set_threads(config.run)
    from pyrocg.system import build_system

    return folder, config, build_system(config)


def _train(folder: RunFolder, config: Config, system: System, quiet: bool) -> None:
    from pyrocg.run import untrained_model
    from pyrocg.system import build_optimizer, build_schedule
    from pyrocg.training import fit

    with (
        folder.claimed(),
        advice_when_stopped(f"continue by `pyrocg resume {folder.path}`"),
        _nonfinite_reported(system),
    ):
        engine = _engine(system, quiet)
        model, basin_calls = untrained_model(folder, config, system, progress=not quiet)
        if not quiet and basin_calls:
            note(f"{basin_calls:,} energy calls for the basins; training {config.fit.steps} steps")
        speed, timing_calls = _speed(config, system, quiet)
        given = {k: v for k, v in vars(config.fit).items() if k not in _BUILT}
        with deferred_interrupt(note) as interrupted:
            result = fit(
                model,
                config.fit.steps,
                config.fit.num_samples,
                optimizer=build_optimizer(config.fit),
                schedule=build_schedule(config.schedule),
                checkpoint=folder.checkpoint,
                progress=not quiet,
                interrupted=interrupted,
                **given,
            )
        calls = {"timing": timing_calls} if timing_calls else {}
        calls |= {"basins": basin_calls, "training": result.energy_calls}
        folder.write_history(result, calls, engine | speed)


def _engine(system: System, quiet: bool) -> dict[str, Any]:
    """What computes the energies, and why."""
    from pyrocg.system import engine_of

    engine = engine_of(system)
    if not quiet and system.molecule is not None:
        note(f"energies by {engine['name']}: {engine['reason']}")
        if engine["name"] != "OpenMMEnergy":
            note("if they are to be compiled first, that takes up to two minutes")
        if (n_atoms := system.molecule.n_atoms) > _MANY_ATOMS:
            note(
                f"warning: {n_atoms} atoms; models of more than some tens take long to train, and "
                "may stay poor: look at the ESS, and compare with dynamics"
            )
    return engine


def _speed(config: Config, system: System, quiet: bool) -> tuple[dict[str, float], int]:
    """How fast energies are on the device of the training, and the calls that timing took."""
    from pyrocg.system import measure_speed

    if quiet or system.molecule is None:
        return {}, 0
    energy = system.target.energy.exact
    before = energy.calls
    speed = measure_speed(config, system)
    needed = f"{speed.minutes:.1f} min" if speed.minutes >= 1 else f"{60 * speed.minutes:.0f} s"
    note(
        f"{speed.rate:,.0f} configurations/s: at least {needed} for the energies of "
        f"{config.fit.steps} steps"
    )
    return {"configurations_per_second": speed.rate}, energy.calls - before


def _predict(
    folder: RunFolder, config: Config, system: System, quiet: bool, corrected: bool
) -> tuple[Prediction, dict[str, Any]]:
    from pyrocg.analysis import total_variation
    from pyrocg.run import trained_run
    from pyrocg.run_prediction import predict_run, samples_of_training
    from pyrocg.system import engine_of

    with _input():
        run = trained_run(folder, config, system)
    if not folder.is_trained:
        note(f"warning: the training has not ended; continue by `pyrocg resume {folder.path}`")
    counters = run.counters
    calls = {"basins": run.basin_calls, "training": counters["energy_calls"]}
    if folder.is_trained:
        calls = folder.history()["energy_calls"]
    n_samples, say = samples_of_training(config, counters), (lambda _: None) if quiet else note
    with _nonfinite_reported(system):
        made = predict_run(config, run.model, system, n_samples, progress=not quiet, say=say)
    prediction = made.prediction
    summary = prediction.summary(corrected) | {"posterior": made.posterior}
    calls |= made.energy_calls
    summary |= {"energy_calls": sum(calls.values()), "energy_calls_split": calls}
    if system.reference is not None and system.reference.phi_psi is not None:
        counts = system.reference.phi_psi
        found = prediction.histogram("phi", "psi", bins=len(counts), corrected=corrected)
        summary["ramachandran_tv"] = total_variation(found.density, counts)
    first = {"system": config.system.kind, "engine": engine_of(system)}
    seconds = {"training": counters["seconds"], **made.seconds}
    return prediction, {**first, **summary, "seconds": seconds}


def _draw(folder: RunFolder, system: System) -> list[Path]:
    """Write the pictures of what the folder has."""
    from pyrocg.pages import prediction_pages, training_page

    mixed = folder.config().model.kind == "basins"
    title = "of the whole mixture, with the best shares of its components" if mixed else ""
    pages = {"training.png": training_page(folder.history()["history"], title)}
    prediction = folder.prediction(system.observables)
    if prediction is None:
        note(f"no prediction to draw; make one by `pyrocg predict {folder.path}`")
    else:
        kt = 1.0 / system.target.beta if system.molecule is not None else None
        reference = system.reference
        counts = None if reference is None else reference.phi_psi
        values = {} if reference is None else reference.observables
        pages |= prediction_pages(prediction, kt, counts, values)
    return [folder.write_figure(name, figure) for name, figure in pages.items()]


def _check_trajectory(path: str, system: System) -> None:
    if system.molecule is None:
        raise ValueError("--trajectory: expected a molecule, got a toy system without atoms")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"--trajectory: expected an existing folder, got {path}")
    if Path(path).suffix not in (".dcd", ".xtc", ".pdb"):
        raise ValueError(f"--trajectory: expected a .dcd, .xtc or .pdb file, got {path}")


# Printing.


def _print_trained(folder: RunFolder) -> None:
    from pyrocg.tables import training_line

    print(training_line(folder.history()))
    print(f"predict by `pyrocg predict {folder.path}`")


def _print_table(summary: dict[str, Any], system: System, seconds: float) -> None:
    from pyrocg.tables import prediction_table

    print(prediction_table(summary, system.reference, seconds))
    for warning in summary["warnings"]:
        note(f"warning: {warning['text']}")


# Whose fault it is.


@contextmanager
def _input() -> Iterator[None]:
    """What fails inside is the fault of what was given."""
    try:
        yield
    except _EXPECTED as error:
        raise _InputError from error


@contextmanager
def _nonfinite_reported(system: System) -> Iterator[None]:
    """Say which energies were not finite inside, also where it failed, perhaps for them."""
    energy = system.target.energy.exact
    before = energy.nonfinite
    try:
        yield
    finally:
        if energy.nonfinite > before:
            note(f"warning: {energy.report()}")


COMMANDS = {
    "quickstart": _quickstart,
    "fit": _fit,
    "resume": _resume,
    "predict": _predict_command,
    "plot": _plot,
}

if __name__ == "__main__":
    sys.exit(main())
