"""`supervisor init`: a new project from the templates. Never overwrites a file."""

from __future__ import annotations

from pathlib import Path

import click

from supervisor.cli.common import command, talk
from supervisor.errors import UsageError

TEMPLATES = Path(__file__).parents[1] / "templates" / "project"
#: Files whose own name would mean something to git or to package builders while they are templates.
_RENAMED = {"gitignore": ".gitignore"}


@command(
    """\
    supervisor init myproject
    supervisor init                     here""",
    short_help="Make a new project.",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".", metavar="[DIR]")
def init(folder: Path) -> None:
    """Make a new project: config.toml, an example handler and its tests. Existing files are never touched."""
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
        "  supervisor restart         after a change of a handler\n"
        "\nREADME.md tells more. The project has tests:\n"
        "  python -m pip install pytest\n"
        "  python -m pytest"
    )


def write_project(folder: Path) -> list[Path]:
    """The files written into `folder`. Raises UsageError, before anything is written, when one exists."""
    sources = [path for path in sorted(TEMPLATES.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    targets = {folder / _target(source.relative_to(TEMPLATES)): source for source in sources}
    if existing := [str(path) for path in targets if path.exists()]:
        raise UsageError(f"nothing was written, since this is there already: {', '.join(existing)}")
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
