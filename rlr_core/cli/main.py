"""`rlr`: the command line. A subcommand is a function that adds its parser, and one line in COMMANDS.

Exit codes: 0 done, 2 something that the person can put right (one sentence on stderr), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from rlr_core import __version__
from rlr_core.cli.bench import add_bench
from rlr_core.cli.compare import add_compare
from rlr_core.cli.correct import add_correct
from rlr_core.cli.diagnose import add_diagnose
from rlr_core.cli.inspect import add_inspect
from rlr_core.cli.listing import add_list
from rlr_core.cli.pairs import add_pairs
from rlr_core.cli.sample import add_evaluate, add_sample
from rlr_core.cli.score import add_score
from rlr_core.cli.train import add_demo, add_train
from rlr_core.errors import UserError, nearest

COMMANDS = (
    add_demo,
    add_train,
    add_sample,
    add_evaluate,
    add_compare,
    add_list,
    add_inspect,
    add_score,
    add_pairs,
    add_diagnose,
    add_bench,
    add_correct,
)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def make_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="rlr",
        description="Reward fine-tuning of diffusion models: reward in, LoRA out.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rlr {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    for command in commands.choices.values():
        command.allow_abbrev = False
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show tracebacks and warnings of libraries")
        for action in command._actions:  # some of the texts are a setting's own, which are sentences
            if action.help:
                action.help = f"{action.help[0].upper()}{action.help[1:].rstrip('.')}."
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. argv: None takes the process's."""
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched while it runs
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            args = _parse(argv)
            return args.run(args)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if str(interrupt) else "\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _sentence(error)
        if debug or message is None:
            raise
        print(f"rlr: {message}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Settings (key=value) may stand anywhere among the flags."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "settings"):
        args.settings += [item for item in rest if not item.startswith("-")]
        rest = [item for item in rest if item.startswith("-")]
    if rest:
        command = next(a for a in parser._actions if a.dest == "command").choices[args.command]
        hint = nearest(rest[0].partition("=")[0], list(command._option_string_actions))
        raise UserError(f"{command.prog} does not know {rest[0]!r}.{hint} See {command.prog} --help.")
    return args


def _sentence(error: Exception) -> str | None:
    """What to tell the person, or None for an error that is ours."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The GPU is out of memory: lower micro_batch, decode_batch or evaluation.batch, or set "
            "gradient_checkpointing=true."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}."
    return None
