"""The command `ckpt`: finds its commands, runs one, and turns every failure into one line and an exit code.

1. One file per command: a module of ckpt.cli that defines `command` is the command of that name; the first line of its
   docstring is its help. The list is read from the files' text: only the command that was named is imported.
2. No logic here or in the commands: they parse, call ops or history, and print through ckpt.cli.output.
3. Whatever goes wrong is one line on standard error, `ckpt: ...`; with --json also {"error": {...}} on standard output.
   CKPT_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ckpt.cli.front import divide
from ckpt.errors import CkptError

#: typer carries its own click since 0.16 and imports another before: both are reached through typer alone.
_UsageError: Any = typer.BadParameter.__mro__[1]
_ClickException: Any = _UsageError.__mro__[1]

_HELP = "git for living Linux processes: checkpoints of a process tree, rollback in place, its memory's history as SQL."
_COMMAND = re.compile(r"^def command\(", re.MULTILINE)
_DOCSTRING = re.compile(r'\A"""(?P<line>[^\n]*?)(?:"""|\n)')
_SIGPIPE_EXIT = 141


def command_help() -> dict[str, str]:
    """{command: its line of help}, by the text of the files beside this one."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        match = _DOCSTRING.match(text)
        if match and _COMMAND.search(text):
            found[path.stem.rstrip("_").replace("_", "-")] = match["line"]
    return found


def _load(name: str) -> Any:
    """The click command of one module."""
    stem = name.replace("-", "_")
    if not (Path(__file__).parent / f"{stem}.py").exists():
        stem += "_"  # a command whose name is a word of Python
    module = importlib.import_module(f"ckpt.cli.{stem}")
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command(name, help=module.__doc__)(module.command)
    return typer.main.get_command(app)


class _Commands(TyperGroup):
    """Knows its commands by name and imports the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(command_help())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _load(cmd_name) if cmd_name in command_help() else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        if helps := command_help():
            with formatter.section("Commands"):
                formatter.write_dl(list(helps.items()))


def _group() -> Any:
    """The click group with everything in it; made anew for each run."""
    app = typer.Typer(cls=_Commands, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, help=_HELP)

    @app.callback(invoke_without_command=True)
    def root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
        if version:
            from importlib.metadata import version as version_of

            typer.echo(f"ckpt {version_of('ckpt-bpf')}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code. Raises nothing."""
    try:
        group = _group()
        with group.make_context("ckpt", list(arguments)) as context:  # not main(): that answers a broken pipe and ^C itself
            result = group.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return int(leave.exit_code)
    except (typer.Abort, KeyboardInterrupt) as error:
        return _fail(arguments, "interrupted", "interrupted", 128 + getattr(error, "number", signal.SIGINT))
    except BrokenPipeError:
        return _quiet()
    except CkptError as error:
        return _fail(arguments, error.kind, str(error), error.exit_code, error)
    except _UsageError as error:
        return _fail(arguments, "usage", _usage(error), 2)
    except _ClickException as error:
        return _fail(arguments, "usage", error.format_message(), 2)
    except PermissionError as error:
        return _fail(arguments, "not permitted", f"{error.filename or 'a system call'}: {error.strerror or error}", 4, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(arguments, "system", f"{where}{error.strerror or error}", 1, error)
    except Exception as error:
        return _fail(arguments, "bug", f"a bug in ckpt: {type(error).__name__}: {error} (CKPT_TRACEBACK=1 shows where)", 1, error)


def _usage(error: Any) -> str:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if getattr(error, "ctx", None) else "ckpt"
    return f"{message[:1].lower()}{message[1:]}: see {path} --help"


def _fail(arguments: Sequence[str], kind: str, message: str, code: int, error: BaseException | None = None) -> int:
    line = " ".join(message.split())
    try:
        if wants_json(arguments):
            import json

            print(json.dumps({"error": {"kind": kind, "message": line, "exit_code": code}}), flush=True)
    except BrokenPipeError:
        _quiet()
    if error is not None and os.environ.get("CKPT_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    print(f"ckpt: {line}", file=sys.stderr, flush=True)
    return code


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json stands among the options: it must be known even when the command line did not parse."""
    options = list(arguments)
    return "--json" in (options[: options.index("--")] if "--" in options else options)


def _quiet() -> int:
    """The reader of our output has gone. What is left in the buffer must not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _SIGPIPE_EXIT


def main() -> None:
    """The entry point `ckpt`."""
    gc.set_threshold(50_000, 20, 100)  # what a command imports and parses stays to its end: looking through it frees nothing
    divide(sys.argv[1:])
    code = run(sys.argv[1:])
    # A failure's frames may hold a memoryview that cffi still lends. CPython before 3.13 crashes where the collector clears such
    # a cycle (gh-77894), as it would on the way out: what is left goes with the process.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
