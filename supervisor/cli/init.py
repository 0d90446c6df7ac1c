"""`supervisor init`: creates a project from the templates. Never overwrites a file."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from supervisor.cli.common import NonEmptyPath, command, dumps, json_option, talk
from supervisor.errors import UsageError
from supervisor.text import path_text

TEMPLATES = Path(__file__).parents[1] / "templates"
#: Files of the second folder that are added to those of the first; the others replace them.
_ADDED = {"config.toml", "gitignore", "dockerignore"}
_PUBLISH = "  supervisor publish events:user_created user_id=1 email=ada@example.com\n"
_POST = """\
  curl -H 'Content-Type: application/json' -d '{"email": "ada@example.com"}' localhost:8000/users
"""
#: Also installs what a project with a database needs to start.
_INSTALL = "  python -m pip install -e '.[dev]'"
#: Template -> real name, for files whose real name git or package builders would act on.
_RENAMED = {"gitignore": ".gitignore", "dockerignore": ".dockerignore", "env.example": ".env.example"}


@command(
    """\
    supervisor init myproject
    supervisor init                     here
    supervisor init --database shop     users and their events in a database""",
    short_help="Create a new project.",
)
@click.argument("folder", type=NonEmptyPath(path_type=Path, file_okay=False), default=".", metavar="[DIR]")
@click.option("--database", is_flag=True, help="Store users in SQLite, and their events in the same transaction.")
@json_option
def init(folder: Path, database: bool, as_json: bool) -> None:
    """Create a project: handlers, a route, tests, config.toml, a Dockerfile. Existing files are never changed."""
    from supervisor.settings.load import working_dir

    if not folder.is_absolute():
        working_dir()  # a deleted one is named here, and not a file in it
    written = write_project(folder, ["project", "database"] if database else ["project"])
    if as_json:
        click.echo(dumps({"folder": path_text(folder), "files": list(map(path_text, written))}, pretty=True))
        return
    for path in written:
        click.echo(str(path))
    name = f"./{folder}" if str(folder).startswith("-") else str(folder)
    change = "" if folder == Path() else f"  cd {shlex.quote(name)}\n"
    packages = f"{_INSTALL}\n" if database else ""
    talk(
        f"\nNext:\n{change}{packages}"
        "  supervisor start\n"
        f"\nIn another terminal:\n{change}"
        f"{_POST if database else _PUBLISH}"
        "  supervisor status\n"
        "  supervisor restart         after changing a handler\n"
        "\nREADME.md says more. To run the tests:\n"
        f"{_INSTALL}\n"
        "  python -m pytest"
    )


def write_project(folder: Path, templates: Sequence[str] = ("project",)) -> list[Path]:
    """Write the project into `folder` and return the paths. Raises UsageError before writing if one exists."""
    targets: dict[Path, str] = {}
    for root in (TEMPLATES / name for name in templates):
        for source in sorted(root.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                target = folder / _target(source.relative_to(root))
                before = targets.get(target, "") if source.name in _ADDED else ""
                targets[target] = before + source.read_text(encoding="utf-8")
    if existing := [str(path) for path in targets if path.exists()]:
        raise UsageError(f"nothing was written, these files exist: {', '.join(existing)}")
    try:
        for target, text in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UsageError(f"{error.filename}: can't be written: {error.strerror}") from None
    return list(targets)


def _target(path: Path) -> Path:
    return path.with_name(_RENAMED.get(path.name, path.name))
