"""`supervisor init`: creates a project from the templates. Never overwrites a file."""

from pathlib import Path

import click

from supervisor.cli.common import command, talk
from supervisor.errors import UsageError

TEMPLATES = Path(__file__).parents[1] / "templates" / "project"
#: Template -> real name, for files whose real name git or package builders would act on.
_RENAMED = {"gitignore": ".gitignore", "dockerignore": ".dockerignore", "env.example": ".env.example"}


@command(
    """\
    supervisor init myproject
    supervisor init                     here""",
    short_help="Create a new project.",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".", metavar="[DIR]")
def init(folder: Path) -> None:
    """Create a project: handlers, a route, tests, config.toml, a Dockerfile. Existing files are never changed."""
    from supervisor.settings.load import working_dir

    if not folder.is_absolute():
        working_dir()  # a deleted one is named here, and not a file in it
    written = write_project(folder)
    for path in written:
        click.echo(str(path))
    change = "" if folder == Path() else f"  cd {folder}\n"
    talk(
        f"\nNext:\n{change}"
        "  supervisor start\n"
        f"\nIn another terminal:\n{change}"
        "  supervisor publish events:user_created user_id=1 email=ada@example.com\n"
        "  supervisor status\n"
        "  supervisor restart         after changing a handler\n"
        "\nREADME.md says more. To run the tests:\n"
        "  python -m pip install -e '.[dev]'\n"
        "  python -m pytest"
    )


def write_project(folder: Path) -> list[Path]:
    """Write the project into `folder` and return the paths. Raises UsageError before writing if one exists."""
    sources = [path for path in sorted(TEMPLATES.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    targets = {folder / _target(source.relative_to(TEMPLATES)): source for source in sources}
    if existing := [str(path) for path in targets if path.exists()]:
        raise UsageError(f"nothing was written, these files exist: {', '.join(existing)}")
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as file:
                file.write(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{error.filename}: can't be written: {error.strerror}") from None
    return list(targets)


def _target(path: Path) -> Path:
    return path.with_name(_RENAMED.get(path.name, path.name))
