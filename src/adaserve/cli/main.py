"""`adaserve`: finds the command's module, runs it, and turns our errors into one line and an exit status.

A command is a module with two functions, `configure(parser)` and `run(args) -> int`. Only the module of the command that was
asked for is imported, so `adaserve --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from adaserve.errors import AdaServeError, InvalidRequest

WRONG_USE = 2
"""Exit status of a wrong option, an unknown model, a busy port: whatever the caller can put right."""


@dataclass(frozen=True)
class Command:
    """A command: where it lives, and what it does in a line."""

    module: str
    help: str


COMMANDS = {
    "serve": Command("adaserve.cli.serve", "run the OpenAI-compatible server"),
    "generate": Command("adaserve.cli.generate", "continue prompts offline, and report how the SLO fared"),
    "bench": Command("adaserve.cli.bench", "replay a trace against the engine or a server, and report"),
    "simulate": Command("adaserve.cli.simulate", "run the same engine on a simulated machine"),
    "record": Command("adaserve.cli.record", "record how often a draft is right, for simulate"),
    "profile": Command("adaserve.cli.profile", "measure how long steps take on this machine"),
    "tune": Command("adaserve.cli.tune", "find a policy's constants for a model and a machine"),
    "grow": Command("adaserve.cli.grow", "embed a small checkpoint in a large shape, its function preserved"),
    "distill": Command("adaserve.cli.distill", "train a draft model for a target"),
    "pull": Command("adaserve.cli.pull", "fetch a known model into the cache"),
    "info": Command("adaserve.cli.info", "print versions, devices, kernels and cached models"),
}
"""Every command. One whose module is not part of this installation is left out of the help."""


def installed(commands: dict[str, Command]) -> dict[str, Command]:
    """Return the commands whose modules exist, without importing any."""
    here = os.path.dirname(__file__)
    return {
        name: command
        for name, command in commands.items()
        if os.path.exists(os.path.join(here, command.module.rpartition(".")[2] + ".py"))
    }


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print the complaint, and where help is, and exit."""
        self.exit(WRONG_USE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def overview(commands: dict[str, Command]) -> Parser:
    """Make the parser of `adaserve` itself: it knows the commands' names, not their options."""
    lines = "\n".join(f"  {name:10} {command.help}" for name, command in commands.items())
    parser = Parser(
        prog="adaserve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="adaserve COMMAND [OPTIONS]",
        description="LLM inference in which every request states how fast it needs its tokens, and gets it.",
        epilog=f"commands:\n{lines}\n\nadaserve COMMAND --help says more about each.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = installed(COMMANDS)
    if not given or given[0].startswith("-"):
        parser = overview(commands)
        if parser.parse_args(given).version:
            from adaserve import __version__

            print(f"adaserve {__version__}")
            return 0
        parser.print_help()
        return WRONG_USE if not given else 0
    name = given[0]
    if name not in commands:
        print(f"adaserve: error: unknown command {name!r}; there are {', '.join(commands)}", file=sys.stderr)
        return WRONG_USE
    module = import_module(commands[name].module)
    parser = Parser(
        prog=f"adaserve {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(module.__doc__ or "").strip(),
        epilog=getattr(module, "EXAMPLES", None),
        allow_abbrev=False,
    )
    module.configure(parser)
    try:
        return int(module.run(parser.parse_args(given[1:])))
    except AdaServeError as error:
        where = f"{error.param}: " if isinstance(error, InvalidRequest) and error.param and error.param not in str(error) else ""
        print(f"adaserve {name}: error: {where}{' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
