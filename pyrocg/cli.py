"""The command line: the only place that prints.

Results go to standard output, progress and errors to standard error. Exit codes: 0 success, 1 a
failure while running, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pyrocg.config import SECTIONS, Config, options, read_toml, resolve
from pyrocg.option import Option, parse

if TYPE_CHECKING:
    from pyrocg.cgmodel import CoarseGrainedModel
    from pyrocg.prediction import Prediction
    from pyrocg.runfolder import RunFolder
    from pyrocg.system import System

__all__ = ["main"]

_BUILT = ("steps", "num_samples", "optimizer")  # what `fit` takes in another form
_EXPECTED = (ValueError, OSError, KeyError, FloatingPointError, RuntimeError)
_DESCRIPTION = """\
Learn a coarse-grained, generative model of a molecule from its force field alone, and predict with
credible intervals."""
_DEFAULTS_HELP = """\
Defaults depend on the system; all are written to config.toml in the folder of the results, whose
sections and keys a --config file has too."""
_SYSTEM_HELP = "double-well or alanine-dipeptide; with --pdb or --peptide, nothing"


class _InputError(Exception):
    """What the user gave cannot be used; the cause says why."""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pyrocg: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        with _one_line_warnings():
            args.command(args)
    except KeyboardInterrupt as error:
        _note(f"interrupted{'; ' + str(error) if str(error) else ''}")
        return 130
    except (_InputError, *_EXPECTED) as error:
        if args.debug:
            traceback.print_exc()
        cause = error.__cause__ if isinstance(error, _InputError) else error
        _note(f"error: {_one_line(cause)}")
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
        folder, config, system = _opened(args.folder)
    if folder.is_trained:
        _note(f"the training in {folder.path} has ended; nothing to resume")
    else:
        _train(folder, config, system, args.quiet)
    _print_trained(folder)


def _predict_command(args: argparse.Namespace) -> None:
    started = time.monotonic()
    with _input():
        from pyrocg.runfolder import plain

        folder, config, system = _opened(args.folder, _given(args))
        if args.trajectory is not None:
            _check_trajectory(args.trajectory, system)
    prediction, summary = _predict(folder, config, system, args.quiet, not args.plain)
    folder.write_prediction(prediction, summary, config.run.save_samples)
    if args.trajectory is not None:
        weights = prediction.save_trajectory(args.trajectory, system.molecule)
        _note(f"wrote {args.trajectory} and {weights}")
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
        config = _located(resolve(_given(args), file))
        _set_threads(config)
        from pyrocg.runfolder import RunFolder
        from pyrocg.system import build_system

        RunFolder.check_free(args.out)
        system = build_system(config)
        return RunFolder.create(args.out, config), config, system


def _opened(path: str, given: dict[str, dict[str, Any]] | None = None) -> Any:
    """The run in a folder, its options with those given now, and its system."""
    from pyrocg.runfolder import RunFolder

    folder = RunFolder.open(path)
    config = resolve(given or {}, read_toml(folder.config_file))
    _set_threads(config)
    from pyrocg.system import build_system

    return folder, config, build_system(config)


def _train(folder: RunFolder, config: Config, system: System, quiet: bool) -> None:
    from pyrocg.system import build_optimizer, build_schedule
    from pyrocg.training import fit

    with (
        _advice_when_interrupted(f"continue by `pyrocg resume {folder.path}`"),
        _nonfinite_reported(system),
    ):
        engine, timing_calls = _engine(config, system, quiet)
        model, basin_calls = _model(folder, config, system, progress=not quiet)
        if not quiet and basin_calls:
            _note(f"{basin_calls:,} energy calls for the basins; training {config.fit.steps} steps")
        given = {k: v for k, v in vars(config.fit).items() if k not in _BUILT}
        with _deferred_interrupt() as interrupted:
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
    folder.write_history(result, calls, engine)


def _engine(config: Config, system: System, quiet: bool) -> tuple[dict[str, Any], int]:
    """What computes the energies, how fast, and the energy calls that timing it took."""
    from pyrocg.system import engine_of, measure_speed

    energy, engine = system.target.energy.exact, engine_of(system)
    if quiet or system.molecule is None:
        return engine, 0
    _note(f"energies by {engine['name']}: {engine['reason']}")
    _note("timing them; if they are to be compiled first, that takes up to a minute")
    before = energy.calls
    speed = measure_speed(config, system)
    _note(
        f"{speed.rate:,.0f} configurations/s: at least {speed.minutes:.1f} min for the energies of "
        f"{config.fit.steps} steps"
    )
    return engine | {"configurations_per_second": speed.rate}, energy.calls - before


def _model(
    folder: RunFolder, config: Config, system: System, progress: bool = False
) -> tuple[CoarseGrainedModel, int]:
    """The untrained model, and the energy calls that its basins took."""
    from pyrocg.system import build_basins, build_model

    if config.model.kind != "basins":
        return build_model(config, system, None), 0
    basins = folder.basins(lambda: build_basins(config, system, progress))
    return build_model(config, system, basins), basins.energy_calls


def _predict(
    folder: RunFolder, config: Config, system: System, quiet: bool, corrected: bool
) -> tuple[Prediction, dict[str, Any]]:
    from pyrocg.analysis import total_variation
    from pyrocg.checkpoint import load_state
    from pyrocg.prediction import predict
    from pyrocg.system import engine_of

    with _input():
        state = load_state(folder.checkpoint)
    if not folder.is_trained:
        _note(f"warning: the training has not ended; continue by `pyrocg resume {folder.path}`")
    model, basin_calls = _model(folder, config, system)
    model.load_state_dict(state["model" if config.predict.state == "last" else "best"])
    started = time.monotonic()
    given = {k: v for k, v in vars(config.predict).items() if k != "state"}
    with _nonfinite_reported(system):
        prediction = predict(model, system.observables, progress=not quiet, **given)
    summary = prediction.summary(corrected)
    counters = state["counters"]
    calls = {"basins": basin_calls, "training": counters["energy_calls"]}
    if folder.is_trained:
        calls = folder.history()["energy_calls"]
    calls["prediction"] = prediction.energy_calls
    seconds = {"training": counters["seconds"], "prediction": time.monotonic() - started}
    summary |= {"energy_calls": sum(calls.values()), "energy_calls_split": calls}
    if system.reference is not None and system.reference.phi_psi is not None:
        counts = system.reference.phi_psi
        found = prediction.histogram("phi", "psi", bins=len(counts), corrected=corrected)
        summary["ramachandran_tv"] = total_variation(found.density, counts)
    first = {"system": config.system.kind, "engine": engine_of(system)}
    return prediction, {**first, **summary, "seconds": seconds}


def _draw(folder: RunFolder, system: System) -> list[Path]:
    """Write the pictures of what the folder has."""
    from pyrocg.pages import prediction_pages, training_page

    mixed = folder.config().model.kind == "basins"
    note = "of all components, with the best shares" if mixed else ""
    pages = {"training.png": training_page(folder.history()["history"], note)}
    prediction = folder.prediction(system.observables)
    if prediction is None:
        _note(f"no prediction to draw; make one by `pyrocg predict {folder.path}`")
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
        _note(f"warning: {warning['text']}")


def _note(text: str) -> None:
    print(f"pyrocg: {text}", file=sys.stderr)


def _one_line(error: BaseException | None) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return " ".join(str(error).split()) or type(error).__name__


# Options.


def _given(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The options on the command line, by section."""
    found: dict[str, dict[str, Any]] = {}
    if getattr(args, "system", None):
        found["system"] = {"kind": args.system}
    for section in SECTIONS:
        for key, option in options(section).items():
            words = getattr(args, f"{section}.{key}", None)
            if words is not None:
                value = words if isinstance(words, bool) else parse(option, words)
                found.setdefault(section, {})[key] = value
    return found


def _located(config: Config) -> Config:
    """The same options with paths and the number of threads that hold from anywhere."""
    system, run = config.system, config.run
    if system.pdb is not None:
        system = replace(system, pdb=str(Path(system.pdb).resolve()))
    if system.forcefield is not None:
        files = (str(Path(f).resolve()) if Path(f).is_file() else f for f in system.forcefield)
        system = replace(system, forcefield=tuple(files))
    return replace(config, system=system, run=replace(run, threads=run.threads or _threads()))


def _threads() -> int:
    """OMP_NUM_THREADS, else 1: networks as small as these gain nothing from more."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else 1


def _set_threads(config: Config) -> None:
    import torch

    torch.set_num_threads(config.run.threads or _threads())


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(prog="pyrocg", description=_DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, epilog: str = ""
    ) -> Any:
        added = commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False, epilog=epilog
        )
        added.set_defaults(command=run)
        return added

    quickstart = command(
        "quickstart", _quickstart, "learn alanine dipeptide, predict and draw", _DEFAULTS_HELP
    )
    quickstart.add_argument("--out", default="pyrocg-quickstart", help="folder of the results")
    fit = command("fit", _fit, "learn a system", _DEFAULTS_HELP)
    fit.add_argument("system", nargs="?", metavar="SYSTEM", help=_SYSTEM_HELP)
    fit.add_argument("--out", required=True, help="folder of the results")
    quickstart.usage = "pyrocg quickstart [--out DIR] [--config FILE] [options]"
    fit.usage = "pyrocg fit [SYSTEM] --out DIR [--config FILE] [options]"
    for each in (quickstart, fit):
        each.add_argument("--config", help="TOML file of options; the command line beats it")
        _add_options(each, SECTIONS)
    resume = command("resume", _resume, "continue a run that was stopped, to the same numbers")
    predict = command("predict", _predict_command, "predict from a trained run")
    predict.add_argument("--json", action="store_true", help="print one JSON object")
    predict.add_argument("--plain", action="store_true", help="the model's own averages")
    predict.add_argument("--trajectory", metavar="FILE", help="write .dcd, .xtc or .pdb")
    _add_options(predict, ["predict"], in_prediction=True)
    plot = command("plot", _plot, "draw the pictures of a run")
    for each in (resume, predict, plot):
        each.add_argument("folder", metavar="DIR", help="folder of the run")
    return parser


def _add_options(
    parser: argparse.ArgumentParser, sections: Sequence[str] | dict[str, type], **where: bool
) -> None:
    for section in sections:
        group = parser.add_argument_group(f"[{section}]")
        for key, option in options(section).items():
            if (section, key) != ("system", "kind"):
                _add_option(group, option, **where)


def _add_option(group: Any, option: Option, in_prediction: bool = False) -> None:
    flags = [f"--{option.flag}"]
    if in_prediction and option.key != option.flag:  # where nothing else has the name
        flags.append(f"--{option.key.replace('_', '-')}")
    dest = f"{option.section}.{option.key}"
    if option.type is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(*flags, dest=dest, action=action, default=None, help=option.help)
        return
    metavar = "{" + ",".join(option.limits.get("choices", ())) + "}"
    group.add_argument(
        *flags,
        dest=dest,
        nargs="+" if option.is_list else 1,
        metavar=metavar if "choices" in option.limits else option.key.split("_")[-1].upper(),
        help=option.help,
    )


# Signals and warnings.


@contextmanager
def _input() -> Iterator[None]:
    """What fails inside is the fault of what was given."""
    try:
        yield
    except _EXPECTED as error:
        raise _InputError from error


@contextmanager
def _advice_when_interrupted(advice: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None


@contextmanager
def _nonfinite_reported(system: System) -> Iterator[None]:
    """Say which energies were not finite inside, also where it failed, perhaps for them."""
    energy = system.target.energy.exact
    before = energy.nonfinite
    try:
        yield
    finally:
        if energy.nonfinite > before:
            _note(f"warning: {energy.report()}")


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait for the end of a training step; a second one does not wait."""
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        _note("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, which alone gets signals
        before = None
    try:
        yield lambda: bool(asked)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, FutureWarning)):
            _note(f"warning: {_one_line(message if isinstance(message, Warning) else None)}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


if __name__ == "__main__":
    sys.exit(main())
