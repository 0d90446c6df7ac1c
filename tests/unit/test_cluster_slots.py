"""All keys of a stream are in the stream's hash slot, whatever it is called, by the server's own rule."""

import inspect

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from supervisor import keys

#: The functions that build a key of a stream: their first parameter says so.
KEYS = [
    function
    for name, function in inspect.getmembers(keys, inspect.isfunction)
    if name.endswith("_key") and not name.startswith("_") and "stream" in inspect.signature(function).parameters
]
STREAMS = st.text("ab{}:", min_size=1, max_size=8) | st.text(min_size=1)


def slot(key: str) -> int:
    return int(key_slot(key.encode(errors="surrogatepass")))


@given(STREAMS.filter(keys.fits_cluster), st.text("ab{}:", min_size=1))
def test_all_keys_of_a_stream_are_in_its_slot(stream: str, other: str) -> None:
    assert len(KEYS) >= 5
    for build in KEYS:
        rest = [other] * (len(inspect.signature(build).parameters) - 1)
        assert slot(build(stream, *rest)) == slot(stream), build.__name__


def test_a_name_that_no_other_key_can_share_a_slot_with_is_known() -> None:
    for stream in ("a}b", "{}a", "}{", "a}{b"):
        assert not keys.fits_cluster(stream)
        assert slot(keys.dead_key(stream, "g")) != slot(stream)
    for stream in ("a", "{a}b", "a{b", "a}{b}", "{a}{}"):
        assert keys.fits_cluster(stream)
