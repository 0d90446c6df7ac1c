"""`supervisor help`: the same as `--help`."""

import click

from supervisor.cli.common import command, no_command
from supervisor.errors import UsageError


@command(
    """\
    supervisor help
    supervisor help start
    supervisor help config show""",
    name="help",
    short_help="Show the help of supervisor or of one command.",
)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of supervisor or of one command, the same as --help."""
    context = ctx.find_root()
    for word in words:
        group = context.command
        if not isinstance(group, click.Group):
            raise UsageError(f"{context.command_path} has no subcommands")
        child = group.get_command(context, word)
        if child is None:
            raise UsageError(no_command(word, group.list_commands(context)))
        context = click.Context(child, info_name=word, parent=context)
    click.echo(context.get_help())
