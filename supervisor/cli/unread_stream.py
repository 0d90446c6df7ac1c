"""Notes for a publisher that no consumer group reads the stream, whose name may be mistyped."""

from supervisor.control import last_groups
from supervisor.errors import PublishError
from supervisor.publisher import Publisher
from supervisor.settings.model import Settings
from supervisor.settings.paths import pool_paths
from supervisor.text import did_you_mean

#: What every server says of a stream that does not exist.
_NO_STREAM = "no such key"


class AskingPublisher(Publisher):
    """A publisher that can ask who reads a stream."""

    async def is_unread(self, stream: str) -> bool:
        """Return whether no consumer group reads the stream; False where Redis does not tell."""
        try:
            return not await self._router.send(stream, lambda node: node.command("XINFO", "GROUPS", stream))
        except PublishError as error:  # a right may be missing
            return _NO_STREAM in str(error)


def unread_text(settings: Settings, stream: str) -> str:
    """Return the note, with the stream of this folder's pool that may have been meant."""
    known = {name for name, _ in last_groups.read(pool_paths(settings))} - {stream}
    return f"no consumer group reads {stream!r} yet{did_you_mean(stream, known)}"
