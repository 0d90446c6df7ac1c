"""How long streams are kept: the words of config.toml, whose limits hold, and when a group is reported."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.retention import (
    HELD_AGAIN_S,
    HELD_S,
    HeldBackTimer,
    Retention,
    Unsettled,
    held_by,
    retention_of,
)
from supervisor.errors import ConfigError
from supervisor.settings.load import load
from supervisor.settings.model import Settings


def loaded(folder: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    (folder / "config.toml").write_text(text)
    return load(folder / "config.toml", environ=environ or {}).settings


@pytest.mark.parametrize(
    ("text", "age_s"),
    [
        ("3600", 3600), ("1.5", 1.5), ("0", 0), ('""', 0), ('"7d"', 604_800), ('"36h"', 129_600), ('"90m"', 5400),
        ('"45s"', 45), ('"1.5h"', 5400), ('"2 d"', 172_800), ('"0s"', 0),
    ],
)  # fmt: skip
def test_an_age_is_seconds_or_has_its_unit(tmp_path: Path, text: str, age_s: float) -> None:
    assert loaded(tmp_path, f"[consumer]\nmax_age = {text}\n").consumer.max_age == age_s
    assert loaded(tmp_path, f"[stream.s]\nmax_age = {text}\n").stream["s"].max_age == age_s
    environ = {"SUPERVISOR_CONSUMER__MAX_AGE": text.strip('"')}
    assert loaded(tmp_path, "", environ).consumer.max_age == age_s


@pytest.mark.parametrize("text", ['"7 days"', '"1w"', '"-1d"', '"7D"', '"60"', '"1d12h"', '"٧d"', "-1", "inf", "true"])
def test_an_age_that_is_none_is_refused_with_what_is_allowed(tmp_path: Path, text: str) -> None:
    for table in ("consumer", "stream.s"):
        with pytest.raises(ConfigError) as caught:
            loaded(tmp_path, f"[{table}]\nmax_age = {text}\n")
        assert f"config.toml:2: {table}.max_age = " in str(caught.value)
        assert ': must be seconds, or a time with its unit such as "7d", "36h", "90m" or "45s"' in str(caught.value)


def test_a_length_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("-1", "1.5", '"many"'):
        with pytest.raises(ConfigError, match=r"consumer\.max_length = .*must be"):
            loaded(tmp_path, f"[consumer]\nmax_length = {text}\n")


def test_a_stream_has_one_retention_whatever_groups_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream\.s\.group\.g\.max_age: unknown key, it belongs to \[stream\.s\]"):
        loaded(tmp_path, '[stream.s.group.g]\nmax_age = "7d"\n')


def test_a_stream_s_own_limits_win_one_by_one(tmp_path: Path) -> None:
    assert not retention_of(Settings(), "any")
    settings = loaded(
        tmp_path,
        '[consumer]\nmax_age = "1d"\nmax_length = 5\n'
        '[stream.long]\nmax_age = "2d"\n[stream.all]\nmax_age = 0\nmax_length = 0\n',
    )
    assert retention_of(settings, "other") == Retention(86_400, 5)
    assert retention_of(settings, "long") == Retention(172_800, 5)
    assert not retention_of(settings, "all")


oldest = st.builds(
    Unsettled,
    group=st.sampled_from("abc"),
    id=st.builds("{}-{}".format, st.integers(1, 20), st.integers(0, 2)),
    age_s=st.floats(0, 20),
)


@given(
    retention=st.builds(Retention, st.sampled_from([0.0, 5.0, 10.0]), st.sampled_from([0, 5, 10])),
    length=st.integers(0, 15),
    first=st.integers(1, 20),
    groups=st.lists(oldest, max_size=3, unique_by=lambda one: one.group),
)
def test_only_the_group_with_the_lowest_id_holds_back_and_only_beyond_a_limit(
    retention: Retention, length: int, first: int, groups: list[Unsettled]
) -> None:
    def order(one: Unsettled) -> tuple[int, ...]:
        return tuple(map(int, one.id.split("-")))

    found = held_by(retention, length, f"{first}-0", groups)
    if found is None:
        for one in groups:
            if order(one) == min(map(order, groups)):
                assert not (retention.max_age_s and one.age_s > retention.max_age_s) or one is not groups[0]
                assert not (retention.max_length and length > retention.max_length and order(one) <= (first, 0))
        return
    (holder,) = [one for one in groups if one.group == found]
    assert order(holder) == min(map(order, groups))
    assert (retention.max_age_s and holder.age_s > retention.max_age_s) or (
        retention.max_length and length > retention.max_length
    )


def test_an_empty_stream_is_held_by_nobody() -> None:
    assert held_by(Retention(1, 1), 0, "", [Unsettled("g", "1-0", 99)]) is None
    assert held_by(Retention(1, 1), 5, "1-0", []) is None


@given(st.lists(st.tuples(st.floats(0.1, 400), st.booleans()), max_size=60))
def test_what_is_held_back_is_told_after_a_while_and_then_seldom(looks: list[tuple[float, bool]]) -> None:
    patience, now_s, since_s, told_s = HeldBackTimer(), 0.0, None, float("-inf")
    for step_s, held in looks:
        now_s += step_s
        since_s = (now_s if since_s is None else since_s) if held else None
        found = patience.held_s("s", now_s, held=held)
        due = since_s is not None and now_s - since_s >= HELD_S and now_s - told_s >= HELD_AGAIN_S
        assert (found is not None) == due
        if due and since_s is not None:
            assert found == now_s - since_s
            told_s = now_s
        assert patience.held_s("other", now_s, held=False) is None
