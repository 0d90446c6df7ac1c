"""The same with the supervisor's Lua scripts: each atomic, like a command."""

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import NoScriptError

from supervisor.broker import scripts
from tests.model.commands import Commands
from tests.model.lua import INTERPRETER

_SCRIPTS = [one for one in vars(scripts).values() if isinstance(one, scripts.Script)]
_TEXTS = {one.sha.encode(): one.text.encode() for one in _SCRIPTS}
_DIGESTS = {text: sha for sha, text in _TEXTS.items()}
#: Commands that change nothing.
READS = frozenset(
    b"EXISTS GET HGET HGETALL HKEYS HMGET HRANDFIELD INFO PING SRANDMEMBER TIME XINFO XLEN XPENDING XRANGE ZCARD"
    b" ZCOUNT ZRANGE ZRANGEBYSCORE ZRANK ZSCORE".split()
)


class Server(Commands):
    """A whole server."""

    def __init__(self, *, eager: bool = True) -> None:
        """`eager`: see `Stream`."""
        super().__init__(eager=eager)
        #: Digests of the scripts that it was given since it started.
        self.known: set[bytes] = set()
        #: Called for each command of a script, and whether the script has written before. Raises what is refused.
        self.refuse: Callable[[Sequence[bytes], bool], None] = lambda words, has_written: None

    def cmd_eval(self, script: bytes, numkeys: bytes, *rest: bytes) -> Any:
        assert script in _DIGESTS, f"this script is not one of broker/scripts.py: {script.decode()}"
        self.known.add(_DIGESTS[script])
        return self.run_script(script, list(rest[: int(numkeys)]), list(rest[int(numkeys) :]))

    def cmd_evalsha(self, sha: bytes, numkeys: bytes, *rest: bytes) -> Any:
        if sha not in self.known:
            raise NoScriptError("No matching script. Please use EVAL.")
        return self.cmd_eval(_TEXTS[sha], numkeys, *rest)

    def run_script(self, script: bytes, keys: list[bytes], arguments: list[bytes]) -> Any:
        """Raises ResponseError as a client would."""
        has_written = False

        def call(*words: bytes) -> Any:
            nonlocal has_written
            name = words[0].upper()
            self.refuse((name, *words[1:]), has_written)
            reply = self._do(name, *words[1:])
            has_written |= name not in READS
            return reply

        return INTERPRETER.run(script, keys, arguments, call)
