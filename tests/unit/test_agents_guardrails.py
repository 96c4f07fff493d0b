"""The guardrails hold for every proposal, actor and state of the world."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.guardrails import (
    Accepted,
    Actor,
    Facts,
    Limits,
    NeedsApproval,
    Refused,
    Situation,
    check,
)
from agents.ladder import ADVICE, EXECUTABLE, above, next_rung
from agents.proposals import Proposal
from agents.roles import APPROVERS, ROLE_KINDS, may_decide
from schemas.vocabulary import Diagnosis, OrderKind, Remedy, Status, UserRole

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LIMITS = Limits()
READY = Facts(
    now=NOW,
    models=("brain", "chest"),
    versions=(1, 2),
    champion=2,
    champion_before=1,
    status=Status.DEGRADED,
    tune_cases=80,
    gate_cases=60,
)
AGENT = Actor(name="agent:orchestrator", cause_model="brain")
OWNER = Actor(name="user:o", role=UserRole.ML_OWNER)
REPORT = Proposal(kind=OrderKind.REPORT, model="brain", version=2)
DEGRADED = Situation(version=2, status=Status.DEGRADED, diagnosis=Diagnosis.COVARIATE)
REMEDY = Proposal(kind=OrderKind.REMEDY, model="brain", version=2, remedy=Remedy.PARTIAL)

proposals = st.builds(
    Proposal,
    kind=st.sampled_from(OrderKind),
    model=st.sampled_from(["brain", "chest", "brian", "'; DROP TABLE model; --", ""]),
    version=st.one_of(st.none(), st.integers(-1, 4)),
    remedy=st.one_of(st.none(), st.sampled_from(Remedy)),
    settings=st.dictionaries(
        st.sampled_from(["epochs", "head_learning_rate", "shell", "rehearsal_share"]),
        st.one_of(st.integers(-5, 500), st.floats(allow_nan=False), st.text(max_size=5), st.booleans()),
        max_size=2,
    ),
)
actors = st.builds(
    Actor,
    name=st.just("x"),
    role=st.one_of(st.none(), st.sampled_from(UserRole)),
    cause_model=st.one_of(st.none(), st.just("brain")),
    asked=st.booleans(),
    approved=st.booleans(),
)
facts = st.builds(
    Facts,
    now=st.just(NOW),
    models=st.just(("brain", "chest")),
    versions=st.just((1, 2)),
    champion=st.one_of(st.none(), st.just(2)),
    champion_before=st.one_of(st.none(), st.just(1)),
    serving=st.booleans(),
    status=st.one_of(st.none(), st.sampled_from(Status)),
    diagnosis=st.sampled_from(Diagnosis),
    small_fall=st.booleans(),
    tune_cases=st.integers(0, 100),
    gate_cases=st.integers(0, 100),
    active_remedy=st.one_of(st.none(), st.just("ord-1")),
    last_remedy_at=st.one_of(st.none(), st.integers(0, 10_000).map(lambda s: NOW - timedelta(seconds=s))),
    last_remedy=st.one_of(st.none(), st.sampled_from(EXECUTABLE)),
    last_remedy_rejected=st.booleans(),
    gate_cases_needed=st.integers(0, 100),
    situation=st.one_of(st.none(), st.just(DEGRADED)),
    reported=st.one_of(st.none(), st.just(DEGRADED)),
    reported_at=st.one_of(st.none(), st.integers(0, 1_000_000).map(lambda s: NOW - timedelta(seconds=s))),
    remedies_last_day=st.integers(0, 8),
    open_label_request=st.one_of(st.none(), st.just("ord-2")),
)
limits = st.builds(Limits, approve_remedies=st.booleans())


@given(proposals, actors, facts, limits)
def test_whatever_is_accepted_meets_every_condition(proposal, actor, world, policy):
    if not isinstance(check(proposal, actor, world, policy), Accepted):
        return
    assert proposal.model in world.models
    assert proposal.version in (None, *world.versions)
    assert actor.asked or actor.approved
    if actor.role is None:
        assert proposal.kind in {OrderKind.REPORT, OrderKind.REMEDY, OrderKind.LABEL_REQUEST}
        assert actor.cause_model in (None, proposal.model)
    else:
        assert proposal.kind in ROLE_KINDS[actor.role]
    if proposal.kind == OrderKind.REMEDY:
        assert proposal.remedy in EXECUTABLE
        assert "shell" not in proposal.settings
        assert actor.role in APPROVERS or (world.status == Status.DEGRADED and world.diagnosis not in ADVICE)
        assert actor.role in APPROVERS or not world.small_fall
        assert (world.tune_cases, world.gate_cases) >= (policy.min_tune_cases, 0)
        assert world.gate_cases >= policy.min_gate_cases
        assert world.active_remedy is None
        assert world.remedies_last_day < policy.max_remedies_per_day
        cooled = world.last_remedy_at is None or (NOW - world.last_remedy_at).total_seconds() >= policy.cool_down_s
        assert cooled or (world.last_remedy_rejected and above(proposal.remedy, world.last_remedy))
        assert actor.role is not None or actor.approved or not policy.approve_remedies


@given(proposals, actors, facts, limits)
def test_every_refusal_explains_itself_and_never_offers_more_than_it_refuses(proposal, actor, world, policy):
    verdict = check(proposal, actor, world, policy)
    if isinstance(verdict, Accepted):
        return
    assert len(verdict.reason.split()) >= 4
    if isinstance(verdict, Refused) and verdict.instead is not None:
        assert verdict.instead.kind == OrderKind.LABEL_REQUEST
        assert verdict.instead.model == proposal.model


@given(proposals, facts, limits)
def test_a_viewer_orders_nothing(proposal, world, policy):
    assert isinstance(check(proposal, Actor(name="v", role=UserRole.VIEWER), world, policy), Refused)


def test_roles_include_the_ones_before_them():
    ladder = [ROLE_KINDS[role] for role in UserRole]
    assert all(smaller < larger for smaller, larger in pairwise(ladder))
    assert ROLE_KINDS[UserRole.ADMIN] == set(OrderKind)


def test_a_justified_remedy_is_accepted():
    assert check(REMEDY, AGENT, READY, LIMITS) == Accepted()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"status": Status.HEALTHY}, "not degraded"),
        ({"status": None}, "not evaluated"),
        ({"small_fall": True}, "smaller than 3 points"),
        ({"diagnosis": Diagnosis.PIPELINE}, "fix the image feed"),
        ({"active_remedy": "ord-9"}, "ord-9"),
        ({"last_remedy_at": NOW - timedelta(minutes=30)}, "too recent"),
        ({"remedies_last_day": 4}, "limit is 4"),
        ({"champion": None}, "no version in service"),
    ],
)
def test_the_agents_remedy_is_refused_with_its_reason(change, word):
    verdict = check(REMEDY, AGENT, READY.model_copy(update=change), LIMITS)
    assert isinstance(verdict, Refused)
    assert word in verdict.reason


@pytest.mark.parametrize(
    ("tune", "gate", "waiting", "needed"),
    [
        (25, 31, 0, {"cases": 43, "tune_cases": 15, "gate_cases": 0}),
        (40, 20, 0, {"cases": 40, "tune_cases": 0, "gate_cases": 10}),
        (25, 20, 0, {"cases": 43, "tune_cases": 15, "gate_cases": 10}),
        (80, 60, 75, {"cases": 60, "tune_cases": 0, "gate_cases": 15}),
    ],
)
def test_too_few_cases_become_a_label_request_with_the_studies_that_must_arrive(tune, gate, waiting, needed):
    began = datetime(2026, 4, 3, tzinfo=UTC)
    world = READY.model_copy(update={"tune_cases": tune, "gate_cases": gate, "gate_cases_needed": waiting, "since": began})
    verdict = check(REMEDY, AGENT, world, LIMITS)
    assert isinstance(verdict, Refused)
    assert verdict.instead is not None
    assert verdict.instead.settings == needed
    for told in (f"About {needed['cases']} more labelled studies", "35% of the patients", "since the decline began (2026-04-03)"):
        assert told in verdict.instead.reason


def test_a_person_may_repair_before_the_gate_has_all_the_cases_it_asked_for():
    world = READY.model_copy(update={"gate_cases_needed": 500})
    assert isinstance(check(REMEDY, AGENT, world, LIMITS), Refused)
    assert check(REMEDY, OWNER, world, LIMITS) == Accepted()


def reported(age, **change):
    told = DEGRADED.model_copy(update=change)
    return READY.model_copy(update={"situation": DEGRADED, "reported": told, "reported_at": NOW - age})


def test_an_unchanged_situation_is_reported_once_per_interval():
    verdict = check(REPORT, AGENT, reported(timedelta(days=6)), LIMITS)
    assert isinstance(verdict, Refused)
    for told in ("2026-04-25", "from 2026-05-02 on", "a person can order one"):
        assert told in verdict.reason
    assert check(REPORT, AGENT, reported(timedelta(days=7)), LIMITS) == Accepted()
    assert check(REPORT, AGENT, reported(timedelta(hours=1)), Limits(report_interval_s=3600)) == Accepted()


def test_with_a_routine_report_the_agents_repeat_nothing():
    routine = Limits(routine_reports=True)
    verdict = check(REPORT, AGENT, reported(timedelta(days=70)), routine)
    assert isinstance(verdict, Refused)
    assert "with the weekly routine" in verdict.reason
    assert check(REPORT, AGENT, reported(timedelta(seconds=1), status=Status.WATCH), routine) == Accepted()
    assert check(REPORT, OWNER, reported(timedelta(seconds=1)), routine) == Accepted()


@pytest.mark.parametrize("change", [{"status": Status.WATCH}, {"diagnosis": Diagnosis.PIPELINE}, {"version": 1}])
def test_a_change_is_reported_at_once(change):
    assert check(REPORT, AGENT, reported(timedelta(seconds=1), **change), LIMITS) == Accepted()


def test_people_order_reports_at_any_time():
    assert check(REPORT, OWNER, reported(timedelta(seconds=1)), LIMITS) == Accepted()


@pytest.mark.parametrize(
    ("rejected", "last", "remedies_today", "accepted"),
    [
        (True, Remedy.HEAD_ONLY, 1, True),
        (True, Remedy.PARTIAL, 1, False),
        (True, Remedy.FULL, 1, False),
        (False, Remedy.HEAD_ONLY, 1, False),
        (True, Remedy.HEAD_ONLY, 4, False),
    ],
)
def test_the_cool_down_does_not_hold_up_the_next_rung_but_the_budget_does(rejected, last, remedies_today, accepted):
    change = {"last_remedy_at": NOW, "last_remedy": last, "last_remedy_rejected": rejected, "remedies_last_day": remedies_today}
    assert isinstance(check(REMEDY, AGENT, READY.model_copy(update=change), LIMITS), Accepted) is accepted


def test_an_owner_may_repair_a_model_that_is_not_degraded_but_not_without_cases():
    healthy = READY.model_copy(update={"status": Status.HEALTHY})
    assert check(REMEDY, OWNER, healthy, LIMITS) == Accepted()
    assert isinstance(check(REMEDY, OWNER, healthy.model_copy(update={"gate_cases": 0}), LIMITS), Refused)


def test_the_policy_makes_the_agents_wait_and_an_owners_own_order_not():
    strict = Limits(approve_remedies=True)
    assert isinstance(check(REMEDY, AGENT, READY, strict), NeedsApproval)
    assert check(REMEDY, OWNER, READY, strict) == Accepted()


def test_an_order_that_was_not_asked_for_waits():
    verdict = check(REMEDY, OWNER.model_copy(update={"asked": False}), READY, LIMITS)
    assert isinstance(verdict, NeedsApproval)


def test_an_evaluation_cannot_cause_an_order_for_another_model():
    verdict = check(REMEDY.model_copy(update={"model": "chest"}), AGENT, READY, LIMITS)
    assert isinstance(verdict, Refused)
    assert "about brain" in verdict.reason


def test_an_unknown_model_is_answered_with_the_nearest():
    verdict = check(REMEDY.model_copy(update={"model": "brian"}), OWNER, READY, LIMITS)
    assert isinstance(verdict, Refused)
    assert "did you mean brain" in verdict.reason


@pytest.mark.parametrize("remedy", [Remedy.NONE, Remedy.FIX_FEED, None])
def test_rungs_that_cannot_be_carried_out_are_refused(remedy):
    assert isinstance(check(REMEDY.model_copy(update={"remedy": remedy}), OWNER, READY, LIMITS), Refused)


def test_a_rollback_goes_only_to_a_version_that_has_served():
    admin, facts = Actor(name="user:a", role=UserRole.ADMIN), READY.model_copy(update={"served": (3, 1), "champion": 2})
    order = Proposal(kind=OrderKind.ROLLBACK, model="brain")
    for wanted in ({}, {"to_version": 1}, {"to_version": 3}):
        assert check(order.model_copy(update={"settings": wanted}), admin, facts, LIMITS) == Accepted()
    never = check(order.model_copy(update={"settings": {"to_version": 4}}), admin, facts, LIMITS)
    assert isinstance(never, Refused)
    assert "3, 1" in never.reason
    assert "serves already" in check(order.model_copy(update={"settings": {"to_version": 2}}), admin, facts, LIMITS).reason


@pytest.mark.parametrize(
    ("kind", "change"),
    [(OrderKind.ROLLBACK, {"champion_before": None}), (OrderKind.STOP_SERVING, {"serving": False}), (OrderKind.RESUME_SERVING, {})],
)
def test_orders_that_the_state_does_not_support_are_refused(kind, change):
    admin = Actor(name="user:a", role=UserRole.ADMIN)
    verdict = check(Proposal(kind=kind, model="brain"), admin, READY.model_copy(update=change), LIMITS)
    assert isinstance(verdict, Refused)


@pytest.mark.parametrize(
    ("role", "kind", "may"),
    [
        (None, OrderKind.REMEDY, False),
        (UserRole.RADIOLOGIST, OrderKind.REPORT, False),
        (UserRole.ML_OWNER, OrderKind.REMEDY, True),
        (UserRole.ML_OWNER, OrderKind.ROLLBACK, False),
        (UserRole.ADMIN, OrderKind.ROLLBACK, True),
    ],
)
def test_who_may_approve(role, kind, may):
    assert may_decide(role, kind) is may


@pytest.mark.parametrize(
    ("cases", "rejected", "rung"),
    [
        (40, (), Remedy.HEAD_ONLY),
        (50, (), Remedy.PARTIAL),
        (50, (Remedy.HEAD_ONLY,), Remedy.PARTIAL),
        (40, (Remedy.HEAD_ONLY, Remedy.PARTIAL), Remedy.FULL),
        (50, (Remedy.PARTIAL,), Remedy.FULL),
        (50, (Remedy.PARAMETER_EFFICIENT,), Remedy.FULL),
        (50, (Remedy.GRADUAL,), Remedy.FULL),
        (50, (Remedy.FULL, Remedy.HEAD_ONLY), None),
        (159, (), Remedy.PARTIAL),
        (160, (), Remedy.FULL),
        (160, (Remedy.PARTIAL,), Remedy.FULL),
    ],
)
def test_the_ladder_is_climbed_rung_by_rung(cases, rejected, rung):
    assert next_rung(cases, 40, rejected) == rung


def test_where_everything_may_not_be_trained_a_part_is():
    assert next_rung(300, 40, (), allowed=(Remedy.HEAD_ONLY, Remedy.PARTIAL)) == Remedy.PARTIAL


@pytest.mark.parametrize(
    ("diagnosis", "rungs"),
    [
        (Diagnosis.PIPELINE, []),
        (Diagnosis.PREVALENCE, [Remedy.RETHRESHOLD, Remedy.RECALIBRATE]),
        (Diagnosis.COVARIATE, [Remedy.HARMONISE, Remedy.ADAPT_STATISTICS, Remedy.PARTIAL, Remedy.FULL]),
        (Diagnosis.CONCEPT, [Remedy.PARTIAL, Remedy.FULL]),
        (Diagnosis.UNKNOWN, [Remedy.PARTIAL, Remedy.FULL]),
    ],
)
def test_the_diagnosis_names_the_first_rung(diagnosis, rungs):
    climbed = []
    while (rung := next_rung(80, 40, climbed, diagnosis)) is not None:
        climbed.append(rung)
    assert climbed == rungs
    few = next_rung(41, 40, [Remedy.ADAPT_STATISTICS], diagnosis)
    assert few in (None, Remedy.HEAD_ONLY)
