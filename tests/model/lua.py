"""Runs the supervisor's own Lua files in the interpreter that Redis embeds (Lua 5.1), on the server in memory.

1. Replies become Lua values and back as on a real server: nil is false, a table ends at its first nil, a number loses
   its fraction.
2. Like a server, it lets no script create a global variable. Unlike one, it ends the history at an error of Lua itself:
   no script of the supervisor may have one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lupa import lua51
from redis._parsers import _AsyncRESP2Parser
from redis.exceptions import RedisError, ResponseError

from supervisor.broker.redis_errors import code_of

#: Does a command of a script. Raises what the server answers.
Call = Callable[..., Any]

_SANDBOX = b"""
setmetatable(_G, {
  __newindex = function(_, name) error('a script creates the global variable ' .. name, 2) end,
  __index = function(_, name) error('a script reads the global variable ' .. name, 2) end,
})
return function(keys, argv)
  rawset(_G, 'KEYS', keys)
  rawset(_G, 'ARGV', argv)
end
"""
#: What a server does not offer.
_FORBIDDEN = (b"dofile", b"io", b"loadfile", b"module", b"os", b"package", b"print", b"python", b"require")


class Interpreter:
    """One for all servers of this process: compiling a script takes longer than running it."""

    def __init__(self) -> None:
        self._lua = lua51.LuaRuntime(encoding=None, register_eval=False)
        self._call: Call
        self._scripts: dict[bytes, Any] = {}
        names = self._lua.globals()
        for name in _FORBIDDEN:
            names[name] = None
        names[b"redis"] = self._lua.table_from(
            {
                b"call": self._redis_call,
                b"pcall": self._redis_pcall,
                b"error_reply": lambda text: self._lua.table_from({b"err": text}),
                b"status_reply": lambda text: self._lua.table_from({b"ok": text}),
            }
        )
        self._set_words = self._lua.execute(_SANDBOX)

    def run(self, script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes], call: Call) -> Any:
        """Return the script's reply. Raises ResponseError for that of a command, and AssertionError for a bug."""
        if script not in self._scripts:
            self._scripts[script] = self._lua.eval(b"function() " + script + b"\nend")
        self._call = call
        self._set_words(self._lua.table_from(list(keys)), self._lua.table_from(list(arguments)))
        try:
            return self._reply(self._scripts[script]())
        except lua51.LuaError as error:
            text = str(error)
            assert not text.startswith(("[string", "error loading")), text  # else it is from `error(text, 0)`
            raise _as_error("ERR " + text) from None

    def _redis_call(self, *words: bytes | float) -> Any:
        return self._value(self._call(*map(_word, words)))

    def _redis_pcall(self, *words: bytes | float) -> Any:
        try:
            return self._redis_call(*words)
        except RedisError as error:
            code, text = code_of(error), str(error)
            return self._lua.table_from({b"err": (text if text.startswith(code) else f"{code} {text}").encode()})

    def _value(self, reply: Any) -> Any:
        """A reply as Lua sees it."""
        if reply is None:
            return False
        if isinstance(reply, dict):
            reply = [word for pair in reply.items() for word in pair]
        if isinstance(reply, list):
            return self._lua.table_from([self._value(item) for item in reply])
        return reply

    def _reply(self, value: Any) -> Any:
        """A script's result as its client sees it."""
        if lua51.lua_type(value) != "table":
            return {True: 1, False: None}[value] if isinstance(value, bool) else _integer(value)
        if (text := value[b"err"]) is not None:
            raise _as_error(text.decode())
        if (text := value[b"ok"]) is not None:
            return text
        found: list[Any] = []
        while (item := value[len(found) + 1]) is not None:
            found.append(self._reply(item))
        return found


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) else value


def _word(value: bytes | float) -> bytes:
    """An argument of a command; numbers as `luaArgsToRedisArgv` writes them."""
    assert isinstance(value, bytes | int | float), f"redis.call takes strings and numbers, not {value!r}"
    return value if isinstance(value, bytes) else f"{float(value):.17g}".encode()


def _as_error(text: str) -> Exception:
    """What redis-py makes of it."""
    error: Exception = _AsyncRESP2Parser.parse_error(text)
    return error if isinstance(error, ResponseError | RedisError) else ResponseError(text)


INTERPRETER = Interpreter()
