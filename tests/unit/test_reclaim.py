"""Whose consumers may be taken from: each name falls to one rule, and those of the living to none."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.reclaim import foreign, owner_of, ownerless
from supervisor.keys import consumer_name

POOLS = st.sampled_from(["here", "here:blue", "other", "gone", "never"])
NAMES = st.one_of(
    st.builds(consumer_name, POOLS, st.integers(0, 5)),
    st.sampled_from(
        ["supervisor:replay", "", ":", ":1", "here", "here:", "here:x", "here:-1", "here:1 ", "here:²", "a b"]
    ),
    st.text(max_size=6),
)


@given(
    names=st.lists(NAMES, unique=True),
    own=POOLS,
    held=st.sets(st.integers(0, 5)),
    known=st.sets(POOLS),
    leases=st.sets(POOLS),
)
def test_a_consumer_is_taken_by_one_rule_at_most(
    names: list[str], own: str, held: set[int], known: set[str], leases: set[str]
) -> None:
    dead = known - leases - {own}
    ours, others = ownerless(names, own, held, dead), foreign(names, own, known)
    assert not set(ours) & set(others)
    for name in names:
        owner = owner_of(name)
        if owner is None:
            assert name in others and name not in ours
        elif owner[0] == own:
            assert (name in ours) == (owner[1] not in held) and name not in others
        else:
            assert (name in ours) == (owner[0] in dead)
            assert (name in others) == (owner[0] not in known)
