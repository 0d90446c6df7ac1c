"""The `supervisor` command: finds the subcommand, runs it, turns every error into text and an exit code.

A subcommand is imported when it is called, and imports slow modules when it runs, so that `--help` and the quick
commands start fast. Errors are turned into text only here.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from supervisor._version import __version__
from supervisor.cli.common import CONTEXT, ExamplesGroup
from supervisor.errors import EXIT_FAILED, EXIT_OK, EXIT_REDIS, EXIT_USAGE, SupervisorError
from supervisor.standard_streams import OutputError, guard_text_streams, open_closed, silence_stdout
from supervisor.text import is_unicode

EXIT_INTERRUPTED = 130
PROGRAM = "supervisor"
#: click's variable for shell completion: `_SUPERVISOR_COMPLETE=bash_source supervisor` prints a script to source.
COMPLETION = "_SUPERVISOR_COMPLETE"

#: Command -> its module, in the order of `--help`.
COMMANDS = {
    "start": "start",
    "status": "status",
    "top": "top",
    "scale": "pool_commands",
    "restart": "pool_commands",
    "stop": "pool_commands",
    "pause": "pool_commands",
    "resume": "pool_commands",
    "streams": "streams",
    "pending": "streams",
    "explain": "explain",
    "dead": "dead",
    "later": "later",
    "schedule": "schedule",
    "publish": "publish",
    "read": "read",
    "tail": "tail",
    "api": "api",
    "config": "config",
    "doctor": "doctor",
    "bench": "bench",
    "init": "init",
    "version": "version",
    "help": "help",
}
START = "start"
#: Commands that scripts call often.
QUICK = frozenset({"status", "scale", "pause", "resume", "streams", "pending", "publish", "read", "version", "help"})


class LazyGroup(ExamplesGroup):
    """The group of all commands; a module is imported when its command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all commands, the most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name, None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"supervisor.cli.{COMMANDS[cmd_name]}")
        # The function has an underscore behind its name where that is a name of Python.
        command: click.Command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        return command


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT,
    examples="""\
    supervisor init myproject             a new project that starts at once
    supervisor start --workers 8          the whole pool, in the foreground
    supervisor publish events:user_created user_id=1 email=ada@example.com
    supervisor status                     the pool and its streams""",
)
@click.version_option(__version__, "--version", "-V", prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """A pool of workers for Redis Streams."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of the codes in supervisor.errors."""
    command = set(sys.argv[1:2])
    if args is not None or not command & {*QUICK, START}:
        sys.exit(run(args))
    if command & QUICK:
        gc.set_threshold(10_000)  # saves 5 ms of CPU
    code = run()
    # Skipping the teardown of the interpreter saves 35 ms of CPU, and 100 ms after a start. The teardown would wait
    # for ever for a thread that a handler module has started. Exit hooks of user code run all the same.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Errors go to stderr."""
    open_closed()
    guard_text_streams()
    try:
        _refuse_supervisord()
        code = _invoke(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`| head`). Python must not flush the rest into the closed pipe at exit.
        silence_stdout()
        return EXIT_OK
    except Exception as error:
        if isinstance(error, OutputError):
            silence_stdout()
        explained = _explained(error)
        if explained is None:
            raise
        return _say(*explained)
    return code


def _explained(error: Exception) -> tuple[str, int] | None:
    """Return the text and the exit code for an error; None for a bug."""
    if isinstance(error, SupervisorError):
        return str(error), error.exit_code
    if isinstance(error, UnicodeEncodeError):
        wrong = next((word for word in sys.argv[1:] if not is_unicode(word)), None)
        return None if wrong is None else (f"{os.fsencode(wrong)!r} is not UTF-8: {error.reason}", EXIT_USAGE)
    if _is_redis_down(error):
        return f"Redis: {error}", EXIT_REDIS
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror or error}", EXIT_FAILED
    return None


def _invoke(args: list[str]) -> int:
    """Do what click's `main` does, except that a closed pipe is not exit code 1."""
    if COMPLETION in os.environ:
        cli.main(prog_name=PROGRAM)  # prints completions and exits
    try:
        with cli.make_context(PROGRAM, args, color=_colours()) as context:
            code: Any = cli.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        hint = f"\n`{where.command_path} --help` shows how" if where else ""
        text = error.format_message().removesuffix(".")
        return _say(f"{text}{hint}", EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_FAILED)
    return code if isinstance(code, int) else EXIT_OK


def _say(text: str, code: int) -> int:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {text}", err=True, color=_colours())
    return code


def _colours() -> bool | None:
    """Return False for NO_COLOR (no-color.org), else None: click then looks for a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _is_redis_down(error: Exception) -> bool:
    exceptions = sys.modules.get("redis.exceptions")
    if exceptions is None:
        return False
    return isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError))


def _refuse_supervisord() -> None:
    if find_spec("supervisor.supervisord") is not None:
        raise SupervisorError(
            "supervisord is installed in this environment: its package has the same name, `supervisor`, and its"
            " files are mixed with ours. Give each its own environment: `python -m venv .venv`, or uninstall both with"
            " `pip uninstall supervisor redis-streams-supervisor` and install this one again"
        )
