"""Groups beside the others: the law behind the evidence, the familywise risk over a year, what is found and what is named."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from schemas.events import SubgroupResult
from services.evaluation.stream import StreamCase
from services.evaluation.subgroup_evidence import ODDS_RATIOS, Leaf, adjusted, adjusted_facet, evidence, log_ratios, streams, weight
from services.evaluation.subgroups import MOST_GROUPS, SUBGROUP_FACETS, judge, with_site

START = datetime(2026, 1, 5, tzinfo=UTC)
CLASSES = ("none", "glioma")
SHARES = {
    "Site": (0.6, 0.3, 0.1),
    "StationName": (0.3, 0.3, 0.2, 0.1, 0.1),
    "PatientSex": (0.52, 0.48),
    "AgeBand": (0.2, 0.4, 0.3, 0.1),
}


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_the_ratio_has_mean_one_where_the_group_is_like_the_others(drawn, wrong, more):
    """Whatever the margins are, so under every error rate that the others have or come to have."""
    total = max(drawn, wrong) + more
    hits = np.arange(max(0, drawn + wrong - total), min(drawn, wrong) + 1)
    same = np.full_like(hits, 1)
    ratios = np.exp(log_ratios((hits, drawn * same), (wrong * same, total * same)))
    chances = hypergeom(total, wrong, drawn).pmf(hits)
    assert chances @ ratios == pytest.approx(np.ones(len(ODDS_RATIOS)))


def test_without_others_there_is_no_evidence():
    cases = np.full((1, 3, 2), 20)
    errors = np.full((1, 3, 2), 15)
    assert np.exp(evidence(streams(errors, cases, (errors[0], cases[0])))[0, -1]) == pytest.approx(3 / 52)


def test_weights_of_all_groups_that_may_ever_come_add_up_to_one():
    assert sum(weight(10, place) for _ in range(10) for place in range(10_000)) == pytest.approx(1, abs=1e-3)


@given(st.lists(st.floats(-5, 12), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_adjusted_evidence_is_the_least_over_all_sets(logs):
    """Closed testing by brute force."""
    leaves = [Leaf(number % 2, number // 2, value) for number, value in enumerate(logs)]
    shares = [weight(2, leaf.place) for leaf in leaves]

    def mean(chosen):
        return np.log(sum(shares[i] * np.exp(logs[i]) for i in chosen) / sum(shares[i] for i in chosen))

    sets = [[i for i in range(len(logs)) if mask >> i & 1] for mask in range(1, 2 ** len(logs))]
    assert adjusted(leaves, 2) == pytest.approx([min(mean(s) for s in sets if i in s) for i in range(len(logs))])
    facet = {i for i, leaf in enumerate(leaves) if leaf.facet == 0}
    assert adjusted_facet(leaves, 2, 0) == pytest.approx(min(mean(s) for s in sets if facet <= set(s)))


def stream(batches, rate, size=100, seed=0, shares=SHARES):
    """Cases of `batches` batches; `rate(batch, facets, truth)` is the chance of an error."""
    generator, cases = np.random.default_rng(seed), []
    for batch in range(1, batches + 1):
        for number in range(size):
            facets = {name: f"{name}{generator.choice(len(share), p=share)}" for name, share in shares.items()}
            truth = CLASSES[int(generator.random() < 0.3)]
            wrong = generator.random() < rate(batch, facets, truth)
            said = CLASSES[1 - CLASSES.index(truth)] if wrong else truth
            at = START + timedelta(days=7 * batch)
            cases.append(StreamCase(batch, f"{batch}-{number}", truth, said, {}, at, facets, ()))
    return cases


def worse(results):
    return [(each.facet, each.group) for each in results if each.worse]


def test_a_decline_at_one_station_is_found_dated_and_put_into_numbers():
    def rate(batch, facets, truth):
        return 0.1 + 0.35 * (batch > 6 and facets["StationName"] == "StationName2" and truth == "glioma")

    found = judge(stream(20, rate), CLASSES, 0.05)
    assert worse(found) == [("StationName", "StationName2")]
    first = found[0]
    assert first.label == "glioma"
    assert first.since_batch_low <= 7 <= first.since_batch_high <= 9
    assert first.since == START + timedelta(days=7 * first.since_batch)
    assert first.recall_low < first.recall < first.recall_high < first.recall_others
    assert first.recall_before > 0.8
    assert first.log_evidence >= np.log(20)
    assert first.more_cases is None


def test_a_group_that_was_always_worse_has_no_before():
    found = judge(stream(10, lambda _, facets, __: 0.1 + 0.3 * (facets["AgeBand"] == "AgeBand3")), CLASSES, 0.05)
    assert worse(found) == [("AgeBand", "AgeBand3")]
    assert (found[0].recall_before, found[0].since_batch_low) == (None, 1)


def test_a_decline_of_everybody_is_no_groups():
    assert worse(judge(stream(12, lambda batch, *_: 0.05 if batch < 5 else 0.4), CLASSES, 0.05)) == []


def test_another_mix_of_classes_in_a_group_is_no_decline():
    """A site with more of the hard class has a lower accuracy and the same recalls."""
    generator, cases = np.random.default_rng(3), []
    for batch in range(1, 13):
        for number in range(100):
            site = "A" if generator.random() < 0.5 else "B"
            truth = "glioma" if generator.random() < (0.8 if site == "A" else 0.1) else "none"
            wrong = generator.random() < (0.4 if truth == "glioma" else 0.02)
            said = CLASSES[1 - CLASSES.index(truth)] if wrong else truth
            cases.append(StreamCase(batch, f"{batch}-{number}", truth, said, {}, START, {"Site": site}, ()))
    assert worse(judge(cases, CLASSES, 0.05)) == []


def test_small_groups_are_named_with_what_they_lack():
    found = judge(stream(3, lambda *_: 0.1), CLASSES, 0.05)
    by_group = {(each.facet, each.group): each for each in found}
    assert set(by_group) == {(name, f"{name}{place}") for name, share in SHARES.items() for place in range(len(share))}
    small, large = by_group["StationName", "StationName4"], by_group["Site", "Site0"]
    assert small.cases < 60
    assert min(small.more_cases, large.more_cases) > 0
    later = {(each.facet, each.group): each for each in judge(stream(40, lambda *_: 0.1), CLASSES, 0.05)}
    assert later["Site", "Site0"].more_cases is None
    assert later["StationName", "StationName4"].more_cases is not None


def test_of_a_group_with_nobody_beside_it_no_number_of_its_own_cases_is_said_to_suffice():
    """A new station takes over from the old one between two batches: neither can be compared, however many cases there are."""
    taken_over = [
        one._replace(facets={"StationName": "CT1" if one.batch <= 20 else "CT2"})
        for one in stream(40, lambda batch, _, truth: 0.1 + 0.5 * (batch > 20 and truth == "glioma"))
    ]
    old, new = judge(taken_over, CLASSES, 0.05)
    assert (old.compared, new.compared, old.worse, new.worse) == (0, 0, False, False)
    assert (old.label, new.label) == ("", "")
    assert new.cases == 2000
    assert min(old.more_cases, new.more_cases) > 100
    mixed = [one._replace(facets={"StationName": "CT2"}) if number % 2 else one for number, one in enumerate(taken_over)]
    old, new = sorted(judge(mixed, CLASSES, 0.05), key=lambda each: each.group)
    assert old.compared == old.cases == 1000
    assert 950 <= new.compared <= 1000 < new.cases


def test_the_cases_that_a_group_is_said_to_need_show_a_fall_of_20_points():
    """80 % power is promised; three standard errors of 40 runs below it are 61 %."""
    shares = {"PatientSex": (0.5, 0.5)}
    needed = judge(stream(2, lambda *_: 0.1, shares=shares), CLASSES, 0.05)[0].more_cases + 100
    batches, found = round(2 * needed / 100), 0
    for seed in range(40):
        cases = stream(
            batches,
            lambda _, facets, truth: 0.1 + 0.2 * (truth == "glioma" and facets["PatientSex"] == "PatientSex1"),
            seed=seed,
            shares=shares,
        )
        found += ("PatientSex", "PatientSex1") in worse(judge(cases, CLASSES, 0.05))
    assert found / 40 > 0.61


def test_the_chance_that_any_group_is_called_worse_within_a_year_is_kept():
    """52 batches of 100 cases, four facets of 14 groups, looked at after each; at 5 %, five of 60 runs would be 1 in 12."""
    generator, runs, false = np.random.default_rng(5), 60, 0
    for _ in range(runs):
        truth, batch = generator.integers(0, 2, 5200), np.repeat(np.arange(52), 100)
        wrong = generator.random(5200) < np.where(truth == 1, 0.15, 0.05) + 0.1 * (batch > 30)
        ever: dict[tuple[int, int], np.ndarray] = {}
        for facet, share in enumerate(SHARES.values()):
            group = generator.choice(len(share), 5200, p=share)
            cell, size = (group * 52 + batch) * 2 + truth, len(share) * 104
            cases, errors = (np.bincount(cell[each], minlength=size).reshape(-1, 52, 2) for each in (wrong | True, wrong))
            found = evidence(streams(errors, cases, (errors.sum(0), cases.sum(0))))
            ever |= {(facet, place): found[place] for place in range(len(share))}
        looks = np.stack(list(ever.values()))
        false += any(
            (adjusted([Leaf(*key, look) for key, look in zip(ever, looks[:, end], strict=True)], 4) >= np.log(20)).any()
            for end in np.flatnonzero(looks.max(0) >= np.log(20))
        )
    assert false / runs <= 0.1


def test_a_facet_of_very_many_groups_stays_bounded_and_its_cases_are_others():
    generator, cases = np.random.default_rng(6), []
    for number in range(6000):
        station = "BAD" if number % 4 == 0 else f"CT{generator.integers(0, 400)}"
        wrong = generator.random() < (0.5 if station == "BAD" else 0.1)
        cases.append(
            StreamCase(1 + number // 500, f"p{number}", "none", CLASSES[int(wrong)], {}, START, {"StationName": station}, ())
        )
    found = judge(cases, CLASSES, 0.05)
    assert worse(found) == [("StationName", "BAD")]
    assert found[0].recall_others == pytest.approx(0.9, abs=0.02)
    assert len(found) == MOST_GROUPS
    assert sum(each.cases for each in found) < 6000


def test_a_site_is_the_title_that_sent_the_study():
    assert with_site({"StationName": "CT1"}, "WARD_2 ") == {"StationName": "CT1", "Site": "WARD_2"}
    assert with_site({"StationName": "CT1"}, None) == {"StationName": "CT1"}
    assert "Site" in SUBGROUP_FACETS


def test_nothing_to_compare_gives_nothing():
    assert judge([], CLASSES, 0.05) == ()
    assert judge(stream(2, lambda *_: 0.1, shares={"Site": (1.0,)}), CLASSES, 0.05) == ()
    assert all(isinstance(each, SubgroupResult) for each in judge(stream(1, lambda *_: 0.0), CLASSES, 0.05))
