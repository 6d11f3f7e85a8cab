"""The arguments of the command line: commands, flags, and what was given. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from pyrocg import __version__
from pyrocg.option import Option, parse
from pyrocg.sections import SECTIONS, options

__all__ = ["given_options", "make_parser"]

Command: TypeAlias = Callable[[argparse.Namespace], None]

_DESCRIPTION = """\
Learn a coarse-grained, generative model of a molecule from its force field alone, and predict with
credible intervals."""
_DEFAULTS_HELP = """\
Defaults depend on the system; all are written to config.toml in the folder of the results, whose
sections and keys a --config file has too."""
_SYSTEM_HELP = "double-well or alanine-dipeptide; with --pdb or --peptide, nothing"


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pyrocg: error: {message}; see {self.prog} --help\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            found.parser.refuse(unknown[0])
        return found

    def refuse(self, word: str) -> NoReturn:
        """Say that a word is not known, and which flag comes near it."""
        flag, _, _ = word.partition("=")
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"expected options of {self.prog}, got {word}{hint}")


def _folder(name: str) -> str:
    if not name.strip():
        raise argparse.ArgumentTypeError("expected the name of a folder, got an empty one")
    return name


def given_options(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
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


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser; its result has the command as ``command``.

    Args:
        commands: what quickstart, fit, resume, predict and plot run.
    """
    common = _Parser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(prog="pyrocg", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pyrocg {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str, epilog: str = "") -> Any:
        added = subparsers.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False, epilog=epilog
        )
        added.set_defaults(command=commands[name], parser=added)
        return added

    quickstart = command("quickstart", "learn alanine dipeptide, predict and draw", _DEFAULTS_HELP)
    quickstart.add_argument(
        "--out", type=_folder, default="pyrocg-quickstart", help="folder of the results"
    )
    fit = command("fit", "learn a system", _DEFAULTS_HELP)
    fit.add_argument("system", nargs="?", metavar="SYSTEM", help=_SYSTEM_HELP)
    fit.add_argument("--out", type=_folder, required=True, help="folder of the results")
    quickstart.usage = "pyrocg quickstart [--out DIR] [--config FILE] [options]"
    fit.usage = "pyrocg fit [SYSTEM] --out DIR [--config FILE] [options]"
    for each in (quickstart, fit):
        each.add_argument("--config", help="TOML file of options; the command line beats it")
        _add_options(each, SECTIONS)
    resume = command("resume", "continue a run that was stopped, to the same numbers")
    predict = command("predict", "predict from a trained run")
    predict.add_argument("--json", action="store_true", help="print one JSON object")
    predict.add_argument("--plain", action="store_true", help="the model's own averages")
    predict.add_argument("--trajectory", metavar="FILE", help="write .dcd, .xtc or .pdb")
    _add_options(predict, ["predict"], in_prediction=True)
    _add_options(predict, ["posterior"])
    for each in (resume, predict):
        _add_option(each.add_argument_group("[run]"), options("run")["device"])
    plot = command("plot", "draw the pictures of a run")
    for each in (resume, predict, plot):
        each.add_argument("folder", type=_folder, metavar="DIR", help="folder of the run")
    return parser


def _add_options(
    parser: argparse.ArgumentParser, sections: Sequence[str] | dict[str, type], **where: bool
) -> None:
    for section in sections:
        group = parser.add_argument_group(f"[{section}]")
        for key, option in options(section).items():
            if (section, key) != ("system", "kind"):  # it is an argument
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
