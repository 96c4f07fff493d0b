"""What labels change: the same whatever comes again, and in whatever polls."""

import itertools

import hypothesis.strategies as st
from hypothesis import given

from services.ground_truth.sayings import Said, Sayings, said_of

KEYS = [("a" * 32, "t", "csv"), ("b" * 32, "t", "csv")]
TIMES = [f"2026-03-0{day} 08:00:00.000000" for day in range(1, 6)]
NOW = TIMES[3]

labels = st.builds(
    lambda key, value, at: Said(*key, value, at), st.sampled_from(KEYS), st.sampled_from(["x", "y", None]), st.sampled_from(TIMES)
)


class Store:
    """What is stored and remembered."""

    def __init__(self):
        self.stored, self.remembered = {}, set()

    def take(self, said, now=NOW):
        poll = Sayings()
        poll.add(said)
        changes = poll.changes(self.stored, poll.doubtful(self.stored, now), self.remembered, now)
        assert [item.key for item in changes.rows] == sorted(item.key for item in changes.rows)
        assert all(self.stored.get(item.key) != item for item in changes.rows)
        self.stored = {item.key: item for item in said_of(self.stored, changes.rows)}
        self.remembered |= set(changes.remembered)
        return changes


@given(st.lists(st.lists(labels, min_size=1, max_size=5), min_size=1, max_size=6), st.data())
def test_what_comes_again_changes_nothing(polls, data):
    store, seen = Store(), []
    for poll in polls:
        store.take(poll)
        seen += poll
        before = dict(store.stored)
        again = data.draw(st.lists(st.sampled_from(seen), min_size=1, max_size=8))
        changes = store.take(again, now=data.draw(st.sampled_from([NOW, TIMES[4]])))
        assert (store.stored, changes.rows) == (before, [])


@given(st.lists(labels, min_size=1, max_size=8), st.data())
def test_the_latest_statement_stands_however_labels_are_polled(said, data):
    said = list({item: None for item in said if item.at <= NOW})
    cuts = sorted(data.draw(st.sets(st.integers(0, len(said)))) | {0, len(said)})
    store = Store()
    for first, last in itertools.pairwise(cuts):
        store.take(said[first:last])
    for key in KEYS:
        mine = [item for item in said if item.key == key]
        if not mine:
            continue
        newest = [item for item in mine if item.at == max(item.at for item in mine)]
        withdrawn = [item for item in newest if item.value is None]
        assert store.stored[key] == (withdrawn or newest)[-1]


def test_a_label_that_was_overtaken_at_its_own_instant_does_not_come_back():
    first, second = (Said(*KEYS[0], value, TIMES[0]) for value in "xy")
    store = Store()
    store.take([first])
    assert store.take([second]).rows == [second]
    assert store.take([first]).rows == []
    assert store.take([first, second]).rows == []


def test_a_label_from_the_future_counts_from_its_receipt_and_only_once():
    ahead, correction = Said(*KEYS[0], "x", TIMES[4]), Said(*KEYS[0], "y", TIMES[2])
    store = Store()
    assert store.take([ahead], now=TIMES[1]).rows == [ahead._replace(at=TIMES[1])]
    assert store.take([correction]).rows == [correction]
    assert store.take([ahead]).rows == []
    assert store.take([ahead], now=TIMES[4]).rows == [], "nor when its time has come"


def test_identities_tell_a_withdrawal_from_any_label_and_fit_the_inbox():
    said = [Said(*KEYS[0], value, TIMES[0]) for value in ("x", "", None)]
    assert len({item.identity for item in said}) == 3
    assert all(len(item.identity) <= 64 for item in said)
