"""Case 29: input that no handler can take. Each message is a dead letter at its first delivery, and no worker dies."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.delivery.case import Case
from tests.support.waiting import eventually

MakeCase = Callable[..., Case]
MEGABYTE = 1_000_000
#: A handler that wants a model, beside one that takes anything.
MODEL = """
from pydantic import BaseModel

class Order(BaseModel):
    n: int
    kind: str
    amount: int = 0
    tags: list[str] = []

@handler("orders", group="orders")
async def handle(order: Order) -> None:
    with run(Message("0-0", "orders", "orders", {"n": str(order.n)})):
        pass

@handler("events", group="workers")
async def plain(message: Message) -> None:
    with run(message):
        await asyncio.sleep(float(message.fields["work_ms"]) / 1000)
"""
#: Name -> the fields, and a word of the reason.
BAD: dict[str, tuple[dict[Any, Any], str]] = {
    "malformed": ({"n": 1, "kind": "a", "tags": "[1, 2"}, "tags"),
    "no number": ({"n": 1, "kind": "a", "amount": "a lot"}, "amount"),
    "unknown type": ({"type": "order.unheard_of.v9", "payload": "{}"}, "kind"),
    "not UTF-8": ({"n": 1, b"kind": b"\xff\xfe\x00"}, "UTF-8"),
    "not UTF-8 name": ({"n": 1, b"\xc3\x28": b"x"}, "UTF-8"),
    "8 MB": ({"n": "9" * (8 * MEGABYTE), "kind": "a"}, "n"),
    "100k fields": ({f"f{n}": n for n in range(100_000)}, "kind"),
    "NUL": ({"n": 1, "kind": "a", "amount": "\x00"}, "amount"),
    "deep": ({"n": 1, "kind": "a", "tags": "[" * 100_000}, "tags"),
    "huge number": ({"n": 1, "kind": "a", "amount": "1" * 100_000}, "amount"),
}


@pytest.mark.long
def test_29_what_no_handler_can_take(make_case: MakeCase) -> None:
    case = make_case(body=MODEL, load_s=6.0, rate=300.0).start()
    before = case.pool.pids()
    names = list(BAD)
    case.rng.shuffle(names)
    ids = {}
    for name in names:
        ids[case.redis.xadd("orders", BAD[name][0]).decode()] = name
    good = case.redis.xadd("orders", {"n": 1, "kind": "a", "tags": '["x"]'})
    large = case.redis.xadd("orders", {"n": 2, "kind": "x" * (8 * MEGABYTE)})
    struck_ns = time.monotonic_ns()
    letters = eventually(lambda: found if len(found := orders_dead(case)) == len(BAD) else None, 60, 0.1)
    case.struck("bad messages", letters, struck_ns)
    case.check(f"{len(BAD)} bad messages until all are dead letters", (time.monotonic_ns() - struck_ns) / 1e6, 10_000)
    for letter in letters:
        name = ids[letter[b"id"].decode()]
        assert BAD[name][1].encode() in letter[b"reason"] + letter.get(b"error", b""), (name, letter[b"reason"][:500])
        assert letter[b"deliveries"] == b"1", name
        assert len(letter[b"reason"]) < 10_000, f"{name}: the reason is not the message itself"
        whole = letter.get(b"field:n") or letter.get(b"field:f0") or letter.get(b"field:type")
        assert whole, name
    eventually(lambda: not case.redis.xpending("orders", "orders")["pending"])
    assert good and large
    eventually(lambda: {end.n for end in case.recording("orders").ends} == {1, 2}, 30)
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    case.check("longest line of the log", max(len(line) for line in case.pool.lines), 20_000, "characters")
    # The others were not held up.
    case.finish(repeated_max=0, recover_ms=3000, errors=["message given up"])


def orders_dead(case: Case) -> list[dict[bytes, bytes]]:
    """The dead letters of `orders`; those that are large take their time."""
    return [letter for _, letter in case.redis.xrange("supervisor:{orders}:orders:dead")]


@pytest.mark.parametrize("path", ["messages:batch", pytest.param("messages", marks=pytest.mark.long)])
def test_29_what_the_api_does_not_take(make_case: MakeCase, path: str) -> None:
    case = make_case(api=True, load_s=1.0)
    case.start_pool()
    address = f"/v1/streams/orders/{path}"

    def wrapped(fields: Any) -> Any:
        return [fields] if path.endswith("batch") else fields

    with httpx.Client(base_url=case.pool.base_url, timeout=20, trust_env=False, verify=False) as http:
        eventually(lambda: http.get("/readyz").status_code == 200, 20)
        json_type = {"content-type": "application/json"}
        assert http.post(address, json=wrapped({"n": "x" * (20 * MEGABYTE)})).status_code == 413
        for text in (b'{"n": ', b'"\xff\xfe"', b"[" * 100_000, b"17", b'{"a": "\xff"}'):
            answer = http.post(address, content=text, headers=json_type)
            assert answer.status_code in {400, 422}, (text[:40], answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
        answer = http.post(address, json=wrapped({f"f{n}": "1" for n in range(100_000)}))
        assert answer.status_code in {413, 422}, answer.text
        assert not case.redis.exists("orders")
        assert http.post(address, json=wrapped({"n": 1})).status_code == 202
        assert len(case.pool.pids()) == case.setting.workers and not case.pool.events("worker exited")
