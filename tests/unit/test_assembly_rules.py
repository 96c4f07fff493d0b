"""When a study is complete: each layer of evidence, their order, and what holds whatever comes."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.settings import DicomSettings
from schemas.vocabulary import CompletedBy
from services.assembly.rules import COMMITMENT_SETTLE_S, Evidence, Named, Rules, judge

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
RULES = Rules(30.0, {"US": 300.0, "DX": 5.0}, 3600.0)


def at(seconds):
    return START + timedelta(seconds=seconds)


def study(last=0.0, modalities=("CT",), instances=10, **changes):
    return Evidence(opened_at=START, last_instance_at=at(last), instances=instances, modalities=modalities, **changes)


def verdict(evidence, seconds, rules=RULES):
    return judge(evidence, rules, at(seconds)).completed_by


def test_the_quiet_period_counts_from_the_last_instance():
    assert verdict(study(last=10), 39.9) is None
    assert verdict(study(last=10), 40) is CompletedBy.QUIET_PERIOD
    assert judge(study(last=10), RULES, at(0)).look_at == at(40)


@pytest.mark.parametrize(
    ("modalities", "seconds"), [(("DX",), 5), (("CT",), 30), (("US",), 300), (("DX", "US"), 300), (("CT", "DX"), 30), ((), 30)]
)
def test_a_study_waits_for_the_longest_quiet_period_of_its_modalities(modalities, seconds):
    assert verdict(study(modalities=modalities), seconds - 0.1) is None
    assert verdict(study(modalities=modalities), seconds) is CompletedBy.QUIET_PERIOD


def test_a_study_that_never_rests_is_announced_as_it_is():
    assert verdict(study(last=3590), 3599) is None
    assert verdict(study(last=3590), 3600) is CompletedBy.LONGEST_OPEN


def test_an_ended_step_completes_as_soon_as_all_it_names_are_there():
    whole = Named(instances=10, missing=0, fresh=True)
    assert verdict(study(named=whole), 0) is CompletedBy.MPPS
    assert verdict(study(named=Named(instances=11, missing=1, fresh=True)), 0) is None


def test_the_number_of_instances_from_which_all_may_be_there_is_known():
    assert judge(study(instances=10, named=Named(instances=40, missing=32, fresh=True)), RULES, at(0)).ring_at == 42
    assert judge(study(instances=10, stated_instances=12, named=Named(0, 40, 32, True)), RULES, at(0)).ring_at == 12
    assert judge(study(instances=10, stated_instances=10), RULES, at(0)).ring_at is None


def test_a_step_in_progress_holds_back_everything_but_the_hard_limit():
    evidence = study(named=Named(steps_in_progress=1, instances=10, fresh=True), stated_instances=10, uncommitted=0)
    assert verdict(evidence, 3599) is None
    assert verdict(evidence, 3600) is CompletedBy.LONGEST_OPEN


def test_commitment_waits_a_moment_for_the_next_image():
    assert verdict(study(uncommitted=0), COMMITMENT_SETTLE_S - 0.1) is None
    assert verdict(study(uncommitted=0), COMMITMENT_SETTLE_S) is CompletedBy.STORAGE_COMMITMENT
    assert verdict(study(uncommitted=1), 29) is None
    assert verdict(study(uncommitted=None), 29) is None


def test_the_stated_number_completes_once_and_a_wrong_one_does_not():
    assert verdict(study(instances=10, stated_instances=10), 0) is CompletedBy.INSTANCE_COUNT
    assert verdict(study(instances=11, stated_instances=10), 0) is None
    assert verdict(study(instances=9, stated_instances=10), 0) is None


def test_an_instance_that_no_step_names_waits_for_the_quiet_period():
    evidence = study(named=Named(instances=10, missing=0, fresh=False))
    assert verdict(evidence, 29) is None
    assert verdict(evidence, 30) is CompletedBy.QUIET_PERIOD


def test_signals_that_a_site_does_not_trust_do_nothing():
    rules = Rules(30.0, signals=())
    evidence = study(named=Named(1, 10, 0, True), stated_instances=10, uncommitted=0)
    assert verdict(evidence, 29, rules) is None
    assert verdict(evidence, 30, rules) is CompletedBy.QUIET_PERIOD


def test_the_rules_come_from_the_settings():
    rules = Rules.from_settings(DicomSettings(quiet_period_s=20, quiet_periods={"MG": 60}, completion_signals=("mpps",)))
    assert [rules.quiet_after({each}).total_seconds() for each in ("MG", "CT")] == [60, 20]
    assert rules.shortest_s == 20
    assert verdict(study(stated_instances=10), 1, rules) is None


NAMED = st.builds(
    lambda progress, total, missing, fresh: Named(progress, total, min(total, missing), fresh),
    st.integers(0, 2),
    st.integers(0, 20),
    st.integers(0, 20),
    st.booleans(),
)
EVIDENCE = st.builds(
    study,
    last=st.floats(0, 7200),
    modalities=st.sets(st.sampled_from(["CT", "US", "DX", "SR"])),
    instances=st.integers(1, 30),
    stated_instances=st.integers(0, 30),
    named=NAMED,
    uncommitted=st.none() | st.integers(0, 30),
)


@given(EVIDENCE, st.floats(0, 10_000))
def test_every_study_is_complete_in_the_end_and_nobody_looks_in_vain(evidence, seconds):
    judgement = judge(evidence, RULES, at(seconds))
    assert (judgement.completed_by is None) == (judgement.look_at > at(seconds))
    assert judge(evidence, RULES, judgement.look_at).completed_by is not None
    assert judgement.look_at <= at(3600)
    assert judgement.ring_at is None or judgement.ring_at > evidence.instances
