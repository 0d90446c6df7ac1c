"""`supervisor version`: prints the versions of supervisor and its main dependencies."""

import click

from supervisor.cli.common import command, dumps, json_option

_PACKAGES = {"redis-py": "redis", "hiredis": "hiredis", "uvloop": "uvloop"}


def versions() -> dict[str, str]:
    """Return name -> version for bug reports; `missing` for a package that is not installed."""
    import platform
    from importlib import metadata

    from supervisor import compiled
    from supervisor._version import __version__

    by_name = {"supervisor": __version__, "python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            by_name[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            by_name[name] = "missing"
    by_name["message-path"] = compiled.describe()
    return by_name


@command(
    """\
    supervisor version
    supervisor version --json""",
    short_help="Print versions.",
)
@json_option
def version(as_json: bool) -> None:
    """Print the versions of supervisor and its main dependencies."""
    found = versions()
    click.echo(dumps(found) if as_json else "\n".join(f"{name} {value}" for name, value in found.items()))
