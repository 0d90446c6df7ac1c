"""What the handlers of the model do, by chance: return, raise, wait, hang, hold up the loop, end their process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from supervisor.core.emit import Emit
from supervisor.handling.decode import as_message
from supervisor.handling.loader import HandlerSpec
from supervisor.messages import BatchError, DecodeError, Message, Reject, Retry
from tests.model.limits import OUT, emits
from tests.model.process import Worker, this_process

if TYPE_CHECKING:
    from tests.model.world import World

Kind = Literal[
    "async", "batch", "thread",  # these return nothing, the others return `Emit`
    "emit", "emit batch",
    "key", "key batch", "key thread", "key halt", "limit", "key limit", "rate", "key rate",
]  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    "key": {"key": "k"},
    "halt": {"key": "k", "on_dead": "halt"},
    "limit": {"group_concurrency": 2},
    "rate": {"rate": "5/s"},
}

FOREVER_S = 1e6
_left_behind: ContextVar[int] = ContextVar("left_behind", default=0)

#: How a handler behaves -> how often.
_WAYS = {
    "return": 40,
    "wait": 20,
    "wait long": 5,
    "block": 5,
    "raise": 10,
    "wait and raise": 5,
    "retry": 4,
    "reject": 3,
    "hang": 3,
    "leave a context variable": 3,
    "raise for one": 4,
}


class Handlers:
    """The handlers of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance

    def spec(self, group: str, kind: Kind) -> HandlerSpec:
        words = kind.split()
        batch, thread = "batch" in words, "thread" in words
        function = self._batch if batch else self._plain if thread else self._one
        options = {name: value for word in words for name, value in _OPTIONS.get(word, {}).items()}
        return HandlerSpec(
            self._world.stream,
            group,
            f"handlers.{group}",
            function,
            self._decode if group == "h" else as_message,
            batch=batch,
            is_async=not thread,
            options=replace(self._world.options, **options),
            where="here",
        )

    def returns(self, group: str) -> bool:
        """Whether the handler of that group returns `Emit` for some messages."""
        return self._world.kinds[group] not in ("async", "batch", "thread")

    def _decode(self, message: Message) -> Message:
        if self._world.ghosts.of_message(message).undecodable:
            error = DecodeError("it does not fit")
            self._world.ghosts.ended(this_process(), message, error)
            raise error
        return message

    async def _one(self, message: Message) -> list[Emit] | None:
        return await self._handle([message])

    async def _batch(self, messages: list[Message]) -> list[Emit] | None:
        return await self._handle(messages)

    def _plain(self, message: Message) -> list[Emit] | None:
        try:
            self._handle([message]).send(None)
        except StopIteration as ended:
            found: list[Emit] | None = ended.value
            return found
        return None

    def _result(self, messages: Sequence[Message]) -> list[Emit] | None:
        group, numbers = messages[0].group, [self._world.ghosts.of_message(message).number for message in messages]
        if not self.returns(group):
            return None
        pairs = zip(messages, numbers, strict=True)
        return [Emit(OUT, {"group": group, "of": message.id}) for message, number in pairs if emits(number)]

    async def _handle(self, messages: Sequence[Message]) -> list[Emit] | None:
        worker: Worker = this_process()
        try:
            for message in messages:
                self._world.ghosts.began(worker, message)
        except Exception as broken:
            self._world.broken = broken
            raise
        error: BaseException | None = None
        try:
            await self._act(worker, messages)
            return self._result(messages)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if worker.alive and not self._world.over:
                worker.busy_s = self._world.clock.now_s
                self._ended(worker, messages, error)

    def _ended(self, worker: Worker, messages: Sequence[Message], error: BaseException | None) -> None:
        left = isinstance(error, asyncio.CancelledError) and worker.leaves_its_work
        for message in messages:
            own = error.failed.get(message.id) if isinstance(error, BatchError) else error
            self._world.ghosts.of_message(message).failed_in_batch |= own is not error
            self._world.ghosts.ended(worker, message, own, counts=not left)

    async def _act(self, worker: Worker, messages: Sequence[Message]) -> None:
        may_wait = worker.pool.world.waits(messages[0].group)
        for message in messages:
            if self._world.ghosts.of_message(message).poison:
                await self._kill(worker, message, may_wait=may_wait)
        way = self._chance.choices(list(_WAYS), list(_WAYS.values()))[0]
        if "wait" in way and may_wait:
            await asyncio.sleep(self._chance.random() * (4 if way == "wait long" else 0.4))
        elif way == "hang" and may_wait:
            await asyncio.sleep(FOREVER_S)
        elif way == "block":
            self._world.clock.now_s += self._chance.random() * 0.3
        elif way == "leave a context variable":
            _left_behind.set(_left_behind.get() + 1)
        self._raise(way, messages)

    def _raise(self, way: str, messages: Sequence[Message]) -> None:
        if way.endswith("raise"):
            raise ValueError("x")
        if way == "retry":
            raise Retry(after_s=0.5)
        if way == "reject":
            raise Reject("no")
        if way == "raise for one" and len(messages) > 1:
            raise BatchError({self._chance.choice(messages).id: ValueError("x")})

    async def _kill(self, worker: Worker, message: Message, *, may_wait: bool) -> None:
        """End the process: at once, after a time, or by ignoring its end so long that the arbiter has to."""
        how = self._chance.random() if may_wait else 0
        if how > 0.9:
            self._world.ghosts.of_message(message).hangs = True
            while True:
                try:
                    await asyncio.sleep(FOREVER_S)
                except asyncio.CancelledError:
                    continue
        if how > 0.5:
            await asyncio.sleep(self._chance.random() * 0.5)
        self._world.ghosts.died(worker, by=self._world.ghosts.of_message(message))
        worker.pool.gone(worker, crashed=True)
        if may_wait:
            await self._never()

    @staticmethod
    async def _never() -> Any:
        """The process is gone, and this is not seen any more."""
        await asyncio.get_running_loop().create_future()
