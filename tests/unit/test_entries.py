"""The compiled reader returns what hiredis does, and both forms of a message hold the same."""

import copy
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio.connection import DefaultParser

from supervisor import compiled
from supervisor.broker.entry_parser import EntryParser
from supervisor.delivery import PythonDelivery
from supervisor.messages import DecodeError, Message

NOTHING = object()
needs_compiled = pytest.mark.skipif(compiled.entries is None, reason=f"no compiled module: {compiled.describe()}")


def plain_reader() -> Any:
    return hiredis.Reader(notEnoughData=NOTHING)


def compiled_reader() -> Any:
    return compiled.entries.Reader(plain_reader())


def bulk(text: bytes | None) -> bytes:
    return b"$-1\r\n" if text is None else b"$%d\r\n%s\r\n" % (len(text), text)


def array(*parts: bytes) -> bytes:
    return b"*%d\r\n%s" % (len(parts), b"".join(parts))


def entry(entry_id: bytes, flat: list[bytes] | None) -> bytes:
    return array(bulk(entry_id), b"*-1\r\n" if flat is None else array(*map(bulk, flat)))


def reply(*streams: tuple[bytes, list[bytes]]) -> bytes:
    return array(*(array(bulk(key), array(*entries)) for key, entries in streams))


def replies_of(reader: Any, chunks: list[bytes]) -> list[Any]:
    """All replies, the last one what was raised; entries as lists."""
    found: list[Any] = []
    try:
        for chunk in chunks:
            reader.feed(chunk)
            while (got := reader.gets(False)) is not NOTHING:
                found.append(taken_apart(got))
    except Exception as error:
        found.append(repr(error))
    return found


def taken_apart(got: Any) -> Any:
    if isinstance(got, list):
        return [taken_apart(part) for part in got]
    if type(got).__name__ == "Entries":
        return [got[at] for at in range(len(got))]
    return repr(got) if isinstance(got, Exception) else got


texts = st.binary(max_size=12)
flats = st.none() | st.lists(texts, max_size=6)
entries = st.builds(entry, texts, flats)
reads = st.lists(st.tuples(texts, st.lists(entries, max_size=4)), max_size=3).map(lambda streams: reply(*streams))
values = st.recursive(
    st.one_of(
        st.none() | texts,
    ).map(bulk)
    | st.integers(-5, 5).map(lambda n: b":%d\r\n" % n)
    | st.sampled_from(
        [b"+OK\r\n", b"-NOGROUP no such key\r\n", b"*-1\r\n", b"$007\r\nabcdefg\r\n", b"*02\r\n:1\r\n:2\r\n"]
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: array(*parts)),
    max_leaves=12,
)
#: A reply with some bytes replaced, removed or added.
damaged = st.builds(
    lambda whole, at, cut, put: whole[: at % (len(whole) + 1)] + put + whole[at % (len(whole) + 1) + cut :],
    reads,
    st.integers(0, 300),
    st.integers(0, 3),
    st.sampled_from(
        [b"", b"\r", b"\n", b"-", b"0", b"9", b"*", b"$", b"\r\n", b"99999999999999999999", b":1\r\n", b"\0"]
    ),
)


@st.composite
def chunked(draw: Any) -> list[bytes]:
    """Some replies as they may come from a socket: in pieces of any size."""
    data = b"".join(draw(st.lists(reads | values | damaged, min_size=1, max_size=4)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@needs_compiled
@given(chunked())
@example([reply((b"s", [entry(b"1-1", [b"a", b"b"])]))])
@example([reply((b"s", [entry(b"1-1", None), entry(b"1-2", [])])), reply((b"s", []))])
@example([b"*1\r\n*2\r\n$1\r\ns\r\n*99999999999\r\n"])
@example([b"*1\r\n*2\r\n$99999999999999999999\r\n"])
@example([b"*1\r\n*2\r\n$-1\r\n:1\r\n"])
def test_any_bytes_in_any_pieces_are_read_as_hiredis_reads_them(chunks: list[bytes]) -> None:
    assert replies_of(compiled_reader(), chunks) == replies_of(plain_reader(), chunks)


@needs_compiled
def test_each_cut_of_a_reply_is_read() -> None:
    whole = reply((b"stream", [entry(b"1-1", [b"name", b"value"]), entry(b"1-2", None)]), (b"other", []))
    wanted = replies_of(plain_reader(), [whole])
    for at in range(len(whole) + 1):
        assert replies_of(compiled_reader(), [whole[:at], whole[at:]]) == wanted
    assert replies_of(compiled_reader(), [whole[at : at + 1] for at in range(len(whole))]) == wanted


def test_a_module_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    built = SimpleNamespace(REVISION=compiled.REVISION, __file__="_entries.so")
    monkeypatch.setitem(sys.modules, "supervisor._entries", built)
    assert compiled._load() == (built, "")
    for revision in ({"REVISION": compiled.REVISION + 1}, {}):  # the first that were built had no constant
        monkeypatch.setitem(sys.modules, "supervisor._entries", SimpleNamespace(**revision, __file__="_entries.so"))
        with pytest.warns(RuntimeWarning, match="_entries.so was built from another version.*install again"):
            assert compiled._load() == (None, "compiled from another version")


@needs_compiled
def test_only_the_entries_of_a_read_are_kept_together() -> None:
    reader = compiled_reader()
    reader.feed(reply((b"s", [entry(b"1-1", [b"a", b"b"])])))
    assert reader.has_data()
    [[key, found]] = reader.gets()
    assert not reader.has_data()
    assert (key, type(found).__name__, len(found), found[-1]) == (b"s", "Entries", 1, [b"1-1", [b"a", b"b"]])
    assert [*found] == [[b"1-1", [b"a", b"b"]]]
    with pytest.raises(IndexError):
        found[1]
    reader.feed(array(b":1\r\n"))
    assert reader.gets() == [1]


@needs_compiled
def test_a_long_reply_leaves_no_memory_behind() -> None:
    reader = compiled_reader()
    whole = reply((b"s", [entry(b"1-1", [b"a", b"x" * 30_000_000])]))
    for at in range(0, len(whole), 1 << 16):
        reader.feed(whole[at : at + (1 << 16)])
    [[_, found]] = reader.gets()
    [message] = Message.from_reply(None, found)  # type: ignore[arg-type]
    assert len(message.fields["a"]) == 30_000_000
    assert not reader.has_data()


class Compiled:
    """A form of Message, made of the compiled base."""

    @staticmethod
    def make() -> Any:
        return type(
            "Message",
            (compiled.entries.Delivery,),
            {"__slots__": (), "_not_utf8": Message._not_utf8, "raw": Message.raw},
        )


class Python:
    """A form of Message, made of the base in Python."""

    @staticmethod
    def make() -> Any:
        return type("Message", (PythonDelivery,), {"__slots__": (), "_not_utf8": Message._not_utf8, "raw": Message.raw})


@pytest.fixture(params=[pytest.param(Compiled, marks=needs_compiled), Python])
def form(request: Any) -> Any:
    return request.param.make()


@pytest.fixture(params=["pairs", pytest.param("read", marks=needs_compiled)])
def message_of(request: Any, form: Any) -> Iterator[Callable[..., Any]]:
    """Makes a message of a form, from pairs or from what the compiled reader has read."""

    def make(flat: list[bytes], entry_id: bytes = b"1-1", origin: Any = None) -> Any:
        found: Any = [[entry_id, flat]]
        if request.param == "read":
            reader = compiled_reader()
            reader.feed(reply((b"s", [entry(entry_id, flat)])))
            [[_, found]] = reader.gets()
        [message] = form.from_reply(origin, found)
        return message

    yield make


FLATS = [
    [],
    [b"a", b"1"],
    [b"a", b"1", b"a", b"2"],
    [b"", b"", "näme".encode(), b"wert"],
    [b"x" * 100, b"\0\r\n$5\r\n", b"b" * 63, b"c" * 5000],
]


@pytest.mark.parametrize("flat", FLATS)
def test_both_forms_hold_the_same(message_of: Any, flat: list[bytes]) -> None:
    origin = object()
    message = message_of(flat, origin=origin)
    parts = [part.decode() for part in flat]
    fields = dict(zip(parts[::2], parts[1::2], strict=True))
    assert (message.origin, message.entry, message.failures, message.recorded) == (origin, b"1-1", 0, False)
    assert message.flat == flat and message.raw == dict(zip(flat[::2], flat[1::2], strict=True))
    assert message.read_fields() == message.fields == fields
    assert message.fields is message.fields and message.read_fields() is not message.fields
    first = dict(reversed([*zip(flat[::2], flat[1::2], strict=True)]))
    assert [message.value_of(name) for name in first] == [*first.values()] and message.value_of(b"none at all") is None
    message.failures, message.recorded, message._id = 3, True, "2-2"
    assert (message.failures, message.recorded, message._id) == (3, True, "2-2")


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80)), max_size=5))
def test_fields_are_decoded_alike(pairs: list[tuple[str, str]]) -> None:
    flat = [part.encode("utf-8", "surrogatepass") for pair in pairs for part in pair]
    made = [
        form.make().from_reply(None, [(b"1-1", flat)])[0]
        for form in (Compiled, Python)
        if form is Python or compiled.entries
    ]
    assert len({_fields_or_error(message) for message in made}) == 1


def _fields_or_error(message: Any) -> str:
    try:
        return repr(message.fields)
    except DecodeError as error:
        return str(error)


@pytest.mark.parametrize(
    ("flat", "wanted"),
    [
        ([b"a", b"1", b"b", b"x\xff"], "the value of field 'b' is not UTF-8: invalid start byte at byte 1"),
        ([b"\xe4", b"1"], r"the name of field b'\xe4' is not UTF-8: unexpected end of data at byte 0"),
        ([b"a", b"\xed\xa0\x80"], "the value of field 'a' is not UTF-8: invalid continuation byte at byte 0"),
    ],
)
def test_the_error_names_the_field_that_is_not_utf8(message_of: Any, flat: list[bytes], wanted: str) -> None:
    message = message_of(flat)
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            message.fields  # noqa: B018
        assert str(caught.value) == wanted
    assert message.flat == flat


def test_the_names_of_fields_are_kept_in_bounds(form: Any) -> None:
    for n in range(3_000):
        [message] = form.from_reply(None, [(b"1-1", [b"name%d" % n, b"1", b"same", b"2"])])
        assert message.fields == {f"name{n}": "1", "same": "2"}


@needs_compiled
def test_a_message_that_waits_keeps_only_its_own_bytes() -> None:
    tracemalloc.start()
    try:
        reader = compiled_reader()
        reader.feed(reply((b"s", [entry(b"%d-1" % n, [b"a", b"x" * 1_000]) for n in range(1_000)])))
        [[_, found]] = reader.gets()
        message = Message.from_reply(None, found)[500]  # type: ignore[arg-type]
        del found, reader
        assert tracemalloc.get_traced_memory()[0] < 200_000  # the reply has 1,000,000
        assert message.entry == b"500-1"
    finally:
        tracemalloc.stop()


@needs_compiled
@pytest.mark.parametrize("flat", ["text", [1], [b"a", "b"], 5])
def test_fields_of_another_kind_are_refused(flat: Any) -> None:
    with pytest.raises(TypeError):
        Message.from_reply(None, [(b"1-1", flat)])  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        Message.from_reply(None, [(b"1-1",)])  # type: ignore[arg-type]


def test_a_message_made_by_a_program_has_what_it_was_given() -> None:
    message = Message("5-1", "stream", "group", {"n": "1", "ä": "ö"}, deliveries=3)
    assert (message.id, message.stream, message.group, message.deliveries) == ("5-1", "stream", "group", 3)
    assert message.fields == {"n": "1", "ä": "ö"} and list(message.flat) == [b"n", b"1", "ä".encode(), "ö".encode()]
    assert message.raw == {b"n": b"1", "ä".encode(): "ö".encode()}
    assert repr(message) == "Message(id='5-1', stream='stream', group='group', deliveries=3)"


@needs_compiled
@given(
    st.lists(
        st.one_of(texts, st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.floats()), min_size=1
    )
)
@example(["XACK", b"", "ä", 10**20, -1, b"\r\n" * 600])
def test_commands_are_packed_as_hiredis_packs_them(arguments: list[Any]) -> None:
    assert compiled.entries.pack_command(tuple(arguments)) == hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]


def test_a_message_can_be_copied_and_pickled() -> None:
    message = Message.from_reply(Message("1-1", "stream", "group"), [(b"5-1", [b"a", b"\xff"])])[0]  # type: ignore[arg-type]
    message.failures = 2
    for same in (copy.copy(message), pickle.loads(pickle.dumps(message))):
        assert (same.id, same.stream, same.group, same.deliveries) == ("5-1", "stream", "group", 3)
        assert same.raw == {b"a": b"\xff"} and not same.recorded


@needs_compiled
def test_a_reader_of_another_redis_py_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(DefaultParser, "on_connect", lambda parser, reader: setattr(parser, "_reader", reader))
    for reader in (plain_reader(), object()):
        parser = EntryParser(1)
        parser.on_connect(reader)
        made.append(type(parser._reader).__name__)
    assert made == ["Reader", "object"]
    parser = EntryParser(1)
    parser.on_connect(plain_reader())
    assert isinstance(parser._reader, compiled.entries.Reader)
