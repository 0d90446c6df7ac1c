"""How many entries a read takes, so that it stays within its bytes."""

from api.pages import PAGE_BYTES, Row, Stride


def rows(count: int, size: int) -> list[Row]:
    return [(b"1-0", {b"f": b"x" * size})] * count


def test_the_next_read_follows_the_sizes_of_the_last() -> None:
    stride = Stride(100)
    assert stride.count == 1, "the first entry may be as large as Redis allows"
    stride.adapt(rows(1, 10))
    assert stride.count == 16
    stride.adapt(rows(16, 10))
    assert stride.count == 100
    stride.adapt(rows(100, PAGE_BYTES // 10))
    assert stride.count == 9
    stride.adapt(rows(1, 2 * PAGE_BYTES))
    assert stride.count == 1


def test_what_is_left_of_a_page_limits_the_next_read() -> None:
    stride = Stride(100)
    stride.adapt(rows(1, 1_000), left_bytes=5_500)
    assert stride.count == 5
    stride.adapt(rows(5, 1_000), left_bytes=-1)
    assert stride.count == 1
