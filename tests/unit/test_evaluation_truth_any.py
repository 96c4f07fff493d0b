"""Whatever a site has stored, the questions about its labels are answered or left open; they never end an evaluation."""

import math
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from services.evaluation.labelling import evidence_of, examine
from services.evaluation.scored import ScoredCase
from tests.truth_world import START

CLASSES = ("a", "b", "c")
shares = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@st.composite
def stored(draw):
    given_shares = draw(shares)
    total = sum(given_shares)
    exclusive = draw(st.booleans()) and total > 0
    values = [value / total if exclusive else value for value in given_shares]
    truth = draw(st.sampled_from([None, None, *CLASSES, "foreign"]))
    scored_at = START + timedelta(hours=draw(st.integers(0, 2000)))
    return ScoredCase(
        study_key=draw(st.sampled_from("0123456789")) * 32,
        patient_key=draw(st.sampled_from("0123456789")) * 32,
        predicted=draw(st.sampled_from([*CLASSES, "foreign"])),
        probabilities=dict(zip(CLASSES, values, strict=True)),
        truth=truth,
        acquired_at=scored_at - timedelta(days=draw(st.integers(0, 3000))),
        scored_at=scored_at,
        joined_at=scored_at + timedelta(hours=draw(st.integers(-5, 500))) if truth else None,
        facets=draw(st.dictionaries(st.sampled_from(["StationName", "Site"]), st.sampled_from(["", "CT1", "CT2"]))),
        source=draw(st.sampled_from([None, "csv"])) if truth else None,
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(stored(), min_size=1, max_size=40), st.integers(1, 4), st.floats(0.1, 100))
def test_any_cases_are_examined(cases, repeat, wait_days):
    found = examine(cases * repeat, CLASSES, (), START + timedelta(days=30), wait_days)
    for name, value in evidence_of(found).items():
        assert isinstance(value, str) or math.isfinite(value), name
    if found.verification:
        for rate in found.verification.rates:
            assert 0 <= rate.weighted.low <= rate.weighted.value + 1e-9 <= rate.weighted.high + 2e-9
            assert rate.weighted.high <= 1
