"""What follows from the facts about an entry: one fate for each group, and none that says more than Redis knows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.entry_fate import Entry, Fate, GroupFacts, LetterFact, Presence, explain
from supervisor.core.ids import normalize_id, parse_id
from supervisor.keys import REPLAY_CONSUMER

NOW_MS = 1000
IDS = st.builds("{}-{}".format, st.integers(0, 6), st.integers(0, 2))
LETTER = LetterFact("9-0", "ValueError", 5, "h", 900)
ENTRIES = st.builds(
    Entry,
    stream=st.just("s"),
    id=IDS,
    exists=st.booleans(),
    stored=st.booleans(),
    first_id=st.sampled_from(["", "2-0"]),
    last_id=st.sampled_from(["", "4-0"]),
    now_ms=st.just(NOW_MS),
).filter(lambda entry: not entry.stored or (entry.exists and parse_id(entry.id) <= parse_id(entry.last_id or "0")))
FACTS = st.builds(
    GroupFacts,
    group=st.just("g"),
    last_delivered=st.none() | IDS,
    consumer=st.sampled_from(["", "", "host:0", REPLAY_CONSUMER]),
    next_due_ms=st.none() | st.sampled_from([NOW_MS - 1, NOW_MS + 1]),
    letter=st.none() | st.just(LETTER),
)


@given(entry=ENTRIES, facts=FACTS)
def test_each_group_has_the_one_fate_that_its_facts_prove(entry: Entry, facts: GroupFacts) -> None:
    verdict = explain(entry, [facts])
    (one,) = verdict.groups
    passed = facts.last_delivered is not None and parse_id(entry.id) <= parse_id(facts.last_delivered)
    settled = not facts.consumer and facts.letter is None
    assert (one.fate in (Fate.IN_HAND, Fate.WAITING, Fate.PUT_BACK)) == bool(facts.consumer)
    assert (one.fate is Fate.DEAD) == (not facts.consumer and facts.letter is not None)
    assert (one.fate is Fate.DONE) == (settled and passed and entry.stored), "done: it is there, passed, and not held"
    assert (one.fate is Fate.UNKNOWN) == (settled and passed and not entry.stored)
    assert (one.fate is Fate.NO_GROUP) == (settled and facts.last_delivered is None)
    gone = not entry.stored and verdict.presence is Presence.GONE
    ahead = settled and facts.last_delivered is not None and not passed
    assert (one.fate is Fate.NEVER_DELIVERED) == (ahead and gone)
    assert (one.fate is Fate.NOT_DELIVERED) == (ahead and not gone)
    assert verdict.known == (entry.stored or bool(facts.consumer) or facts.letter is not None)
    assert json.loads(json.dumps(verdict.as_dict()))["groups"][0]["fate"] == one.fate.value


@given(entry=ENTRIES)
def test_an_entry_is_there_gone_to_come_or_nowhere(entry: Entry) -> None:
    found = explain(entry, []).presence
    assert (found is Presence.STORED) == entry.stored
    assert (found is Presence.NO_STREAM) == (not entry.exists)
    if not entry.stored and entry.exists:
        later = parse_id(entry.id) > parse_id(entry.last_id or "0-0")
        assert found is (Presence.NOT_PUBLISHED if later else Presence.GONE)


def test_a_retry_that_is_due_is_in_hand() -> None:
    entry = Entry("s", "1-0", True, True, "1-0", "1-0", NOW_MS)
    fates = [
        explain(entry, [GroupFacts("g", "1-0", consumer="c", next_due_ms=due_ms)]).groups[0].fate
        for due_ms in (None, NOW_MS, NOW_MS + 1)
    ]
    assert fates == [Fate.IN_HAND, Fate.IN_HAND, Fate.WAITING]


@pytest.mark.parametrize(("text", "meant"), [("5", "5-0"), ("5-1", "5-1"), ("0", "0-0"), ("007-01", "7-1")])
def test_an_id_is_made_whole(text: str, meant: str) -> None:
    assert normalize_id(text) == meant


@pytest.mark.parametrize("text", ["", "-", "1-", "-1", "1-2-3", "٣", "1 ", "$", "18446744073709551616", "1_000", "(1"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an entry's id such as"):
        normalize_id(text)
