"""One decline from its discovery to the last rung: reports without noise, the ladder, true counts, the story told."""

from itertools import pairwise

import pytest
from sqlmodel import select

from schemas.agent_runs import AgentRun
from schemas.events import MaintenancePromotion
from schemas.report_settings import ReportSettings
from schemas.settings import PolicySettings
from schemas.tables import BaselineCase, Inbox, TrainingPatient
from schemas.topics import PROMOTION
from schemas.vocabulary import CaseRole, Diagnosis, OrderKind, OrderState, Remedy, Status, Verdict
from services.remediation import repository as remediation
from services.remediation.conclusion import Shortage, request_labels
from services.remediation.plan import Plan, choose, labels_for, start_of_decline

FALL = {
    "class": "b_left",
    "scope": "all classes",
    "recall": 0.0712,
    "recall_before": 0.914,
    "root_cause": "since 2 March, station CT2; recall of b_left 0.07, was 0.91",
}
JARGON = ("scope", "drop low", "statistic", "threshold", "e value", "McNemar", "p =", "covariate", "[", "{")

RUNGS = [Remedy.HARMONISE, Remedy.ADAPT_STATISTICS, Remedy.HEAD_ONLY, Remedy.PARTIAL, Remedy.FULL]
"""What the agents order for images of another scanner where there are few cases."""
MANY = PolicySettings(max_remedies_per_day=9)


def sent(hospital, kind):
    return [order for order in hospital.sent() if order.kind == kind]


def remedies(hospital):
    return [order.remedy for order in sent(hospital, OrderKind.REMEDY)]


def began(hospital):
    return {**FALL, "since": hospital.clock.now().isoformat()}


def test_a_decline_is_reported_when_it_is_found_and_the_routine_report_tells_the_rest(database, make_hospital):
    hospital = make_hospital(database)
    for _ in range(4):
        hospital.handle(hospital.evaluation())
        hospital.clock.advance(8 * 86_400)
    run = hospital.handle(hospital.evaluation())
    assert len(sent(hospital, OrderKind.REPORT)) == 1
    assert "with the weekly routine" in run.reply
    hospital.handle(hospital.evaluation(Status.HEALTHY, Diagnosis.NONE))
    assert len(sent(hospital, OrderKind.REPORT)) == 2


def test_without_a_routine_report_a_decline_is_reported_once_a_week(database, make_hospital):
    hospital = make_hospital(database, reports=ReportSettings(weekly=False))
    for _ in range(5):
        run = hospital.handle(hospital.evaluation())
    assert len(sent(hospital, OrderKind.REPORT)) == 1
    assert "Not ordered: a report on brain_mri. Nothing has changed since" in run.reply
    refused = [order for order in hospital.orders() if order.kind == OrderKind.REPORT and order.state == OrderState.REFUSED]
    assert len(refused) == 1, "the same refusal is one order, however often it is met"
    hospital.say("write a report on brain")
    assert len(sent(hospital, OrderKind.REPORT)) == 2
    hospital.clock.advance(7 * 86_400)
    hospital.handle(hospital.evaluation())
    hospital.handle(hospital.evaluation())
    assert len(sent(hospital, OrderKind.REPORT)) == 3


def test_each_change_of_status_or_diagnosis_is_reported(hospital):
    changes = [
        (Status.HEALTHY, Diagnosis.NONE, 0),
        (Status.WATCH, Diagnosis.UNKNOWN, 1),
        (Status.WATCH, Diagnosis.UNKNOWN, 1),
        (Status.DEGRADED, Diagnosis.UNKNOWN, 2),
        (Status.DEGRADED, Diagnosis.COVARIATE, 3),
        (Status.UNDECIDED, Diagnosis.NONE, 3),
        (Status.DEGRADED, Diagnosis.COVARIATE, 3),
        (Status.HEALTHY, Diagnosis.NONE, 4),
        (Status.HEALTHY, Diagnosis.NONE, 4),
    ]
    for status, diagnosis, reports in changes:
        hospital.handle(hospital.evaluation(status, diagnosis))
        assert len(sent(hospital, OrderKind.REPORT)) == reports, (status, diagnosis)
    assert "healthy again" in sent(hospital, OrderKind.REPORT)[-1].reason


def test_the_site_sets_the_interval(sqlite_database, make_hospital):
    hospital = make_hospital(sqlite_database, policy=PolicySettings(report_interval_s=100), reports=ReportSettings(weekly=False))
    for _ in range(4):
        hospital.handle(hospital.evaluation())
    assert len(sent(hospital, OrderKind.REPORT)) == 2  # an evaluation a minute


def test_the_gates_no_leads_rung_by_rung_to_labels_and_a_person(database, make_hospital):
    hospital = make_hospital(database, policy=MANY)
    hospital.cases(tune=45, gate=40)
    hospital.handle(hospital.evaluation())
    for tried, following in pairwise(RUNGS):
        assert remedies(hospital)[-1] == tried
        record = hospital.verdict(Verdict.REJECT)
        hospital.handle(record)
        assert remedies(hospital)[-1] == following
    run = hospital.handle(hospital.verdict(Verdict.REJECT))
    assert remedies(hospital) == RUNGS
    (request,) = sent(hospital, OrderKind.LABEL_REQUEST)
    assert f"the gate turned down {len(RUNGS)} repairs" in request.reason
    assert "a person has to decide" in run.reply


def test_when_the_ladder_is_used_up_it_is_said_once_until_something_changes(database, make_hospital):
    hospital = make_hospital(database, policy=MANY)
    hospital.cases(tune=45, gate=40)
    hospital.handle(hospital.evaluation())
    for _ in RUNGS:
        hospital.handle(hospital.verdict(Verdict.REJECT, gate_cases=40.0))
    (request,) = sent(hospital, OrderKind.LABEL_REQUEST)
    for choice in ("label about 72 more studies", "bring an earlier version back", "another version", "other settings", "stop"):
        assert choice in request.reason
    assert request.settings["cases"] == labels_for(43, 0.6)
    for _ in range(4):
        hospital.clock.advance(8 * 86_400)
        run = hospital.handle(hospital.evaluation())
    assert len(sent(hospital, OrderKind.LABEL_REQUEST)) == 1
    assert f"told already ({request.order_id})" in run.reply
    hospital.cases(tune=30, gate=13, patients="1")
    hospital.handle(hospital.evaluation())
    assert remedies(hospital)[len(RUNGS) :] == [Remedy.HARMONISE], "half as many cases again: the ladder begins anew"


def test_a_persons_repair_that_fails_too_is_news(sqlite_database, make_hospital):
    hospital = make_hospital(sqlite_database, policy=MANY)
    hospital.cases(tune=45, gate=40)
    hospital.handle(hospital.evaluation())
    for _ in RUNGS:
        hospital.handle(hospital.verdict(Verdict.REJECT, gate_cases=40.0))
    hospital.clock.advance(8 * 86_400)
    hospital.say("fine-tune brain fully")
    assert len(remedies(hospital)) == len(RUNGS) + 1
    hospital.handle(hospital.verdict(Verdict.REJECT, gate_cases=40.0))
    assert len(sent(hospital, OrderKind.LABEL_REQUEST)) == 2
    assert f"turned down {len(RUNGS) + 1} repairs" in sent(hospital, OrderKind.LABEL_REQUEST)[-1].reason


def test_labels_are_not_asked_for_where_they_would_decide_nothing(hospital):
    hospital.cases(tune=0, gate=0, waiting=5)
    run = hospital.handle(hospital.evaluation(Status.UNDECIDED, Diagnosis.NONE))
    assert sent(hospital, OrderKind.LABEL_REQUEST) == []
    assert "no number of labels" in run.reply
    hospital.handle(hospital.evaluation(Status.UNDECIDED, Diagnosis.NONE, more_cases_needed=40))
    (request,) = sent(hospital, OrderKind.LABEL_REQUEST)
    assert request.settings["cases"] == labels_for(40, 0.4), "two patients of five raise alarms"


def test_a_verdict_delivered_again_orders_nothing_more(database, make_hospital):
    hospital = make_hospital(database)
    hospital.cases(tune=45, gate=40)
    hospital.handle(hospital.evaluation())
    record = hospital.verdict(Verdict.REJECT)
    hospital.handle(record)
    before = [order.order_id for order in hospital.orders()]
    with database.transaction() as tx:
        tx.session.delete(tx.session.get(Inbox, ("agents", record.event_id)))
    hospital.handle(record)
    hospital.handle(hospital.evaluation())
    assert remedies(hospital) == RUNGS[:2]
    assert [order.order_id for order in hospital.orders() if order.order_id in before] == before


def test_the_budget_of_the_day_ends_the_climb(sqlite_database, make_hospital):
    hospital = make_hospital(sqlite_database, policy=PolicySettings(max_remedies_per_day=2))
    hospital.cases(tune=45, gate=40)
    hospital.handle(hospital.evaluation())
    hospital.handle(hospital.verdict(Verdict.REJECT))
    run = hospital.handle(hospital.verdict(Verdict.REJECT))
    assert remedies(hospital) == RUNGS[:2]
    assert "the limit is 2" in run.reply


def test_a_promotion_is_only_noted(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    before = len(hospital.orders())
    record = hospital.verdict(Verdict.PROMOTE)
    run = hospital.handle(record)
    assert len(hospital.orders()) == before
    assert run.reply == "Version 2 of brain_mri passed the gate and serves; nothing to do."
    with hospital.database.read() as session:
        assert session.exec(select(AgentRun).where(AgentRun.cause == record.event_id)).one().order_ids == []


def test_a_gate_without_enough_cases_asks_for_labels_once_and_no_repair_follows_before_they_are_there(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    hospital.handle(hospital.verdict(Verdict.NEED_LABELS, gate_cases_needed=60.0))
    (request,) = sent(hospital, OrderKind.LABEL_REQUEST)
    assert request.settings["cases"] == labels_for(20, 0.25) == 80
    hospital.finish(OrderState.DONE)
    run = hospital.handle(hospital.evaluation())
    assert "40 to judge with (20 too few)" in run.reply
    assert len(remedies(hospital)) == len(sent(hospital, OrderKind.LABEL_REQUEST)) == 1
    hospital.cases(tune=60, gate=30, patients="1")
    hospital.handle(hospital.evaluation())
    assert remedies(hospital) == [Remedy.HARMONISE] * 2  # the gate has not turned it down


def test_cases_count_as_the_repair_uses_them(database, make_hospital):
    hospital = make_hospital(database)
    hospital.cases(tune=100, gate=60)
    hospital.clock.advance(86_400)
    evidence = began(hospital)
    hospital.clock.advance(60)
    hospital.cases(tune=50, gate=35, patients="1")
    with database.transaction() as tx:
        for number in range(5):  # patients of a gate that an earlier version was judged on
            known = {"truth": "a", "predicted": "a", "probabilities": {"a": 1.0}}
            key = f"1{number + 1:031x}"
            tx.session.add(BaselineCase(model="brain_mri", version=1, case_key=key, patient_key=key, **known))
        known = TrainingPatient(model="brain_mri", patient_key=f"1{10:031x}")  # the model has learnt from this one
        tx.session.add(known)
    record = hospital.evaluation(**evidence)
    hospital.handle(record)
    with database.read() as session:
        pools = [remediation.labelled_cases(session, "brain_mri", 1, role) for role in (CaseRole.TUNE, CaseRole.GATE)]
        taken = remediation.baseline_patients(session, "brain_mri") | {f"1{10:031x}"}
    settings = {"classes": ("a", "b"), "min_tune": 1, "min_gate": 1, "most": 2000}
    plan = choose(1, *pools, taken=taken, since=start_of_decline(evidence), **settings)
    assert isinstance(plan, Plan)
    (order,) = sent(hospital, OrderKind.REMEDY)
    assert f"on {len(plan.tune)} labelled studies made since then" in order.reason
    assert (len(plan.tune), len(plan.gate)) == (44, 35)


def test_cases_from_before_the_decline_train_no_repair(hospital):
    hospital.cases(tune=100, gate=60)
    hospital.clock.advance(86_400)
    evidence = began(hospital)
    hospital.cases(tune=20, gate=10, patients="1")
    hospital.handle(hospital.evaluation(**evidence))
    assert remedies(hospital) == []
    (request,) = sent(hospital, OrderKind.LABEL_REQUEST)
    assert request.settings == {"cases": 80, "tune_cases": 20, "gate_cases": 20}
    assert "20 to learn from (20 too few) and 10 to judge with (20 too few) since the decline began" in request.reason


def test_the_reason_is_two_sentences_in_plain_words(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation(**began(hospital)))
    (order,) = sent(hospital, OrderKind.REMEDY)
    assert order.reason.endswith(
        "; the remedy is to harmonise the new images with those the model was made with on 60 labelled studies made since then."
    )
    for order in hospital.sent():
        assert order.reason.count(". ") == 1
        assert "worse in all classes together, most clearly in b_left: of 100 such patients it finds 7, before 91." in order.reason
        assert "new images (scanner, protocol or patients): station CT2; " in order.reason
        assert not [word for word in JARGON if word in order.reason]


@pytest.mark.parametrize(
    ("status", "now"),
    [
        (Status.HEALTHY, "Version 2 serves now. It is healthy: its 100 labelled cases show no decline."),
        (Status.UNDECIDED, "Version 2 serves now. It is too early to call it healthy: its 100 labelled cases show no decline"),
    ],
)
def test_what_happened_is_told_as_a_story(hospital, status, now):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation(**began(hospital)))
    hospital.handle(hospital.verdict(Verdict.REJECT, gate_cases=40.0, mcnemar_wins=12.0, mcnemar_losses=2.0))
    hospital.handle(hospital.verdict(Verdict.PROMOTE, gate_cases=40.0, mcnemar_wins=21.0, mcnemar_losses=1.0))
    hospital.handle(hospital.evaluation(status, Diagnosis.NONE, version=3, more_cases_needed=9))
    with hospital.database.transaction() as tx:
        assert tx.session.get_one(remediation.RegisteredModel, "brain_mri").champion == 3
    reply = hospital.say("What happened to the brain model, and is it healthy now?").reply
    told = (
        "Since 2 March 2026 brain_mri has been worse in all classes together, most clearly in b_left",
        "(found on 2 March 2026, in version 1)",
        "The likely cause is new images (scanner, protocol or patients): station CT2.",
        (
            "the agents ordered to harmonise the new images with those the model was made with. "
            "On 40 new cases version 2 read 12 better and 2 worse"
        ),
        "the gate turned it down, because it forgets too much.",
        (
            "the agents ordered to adapt the network to the look of the new images. "
            "On 40 new cases version 3 read 21 better and 1 worse"
        ),
        "it passed the gate.",
        now.replace("Version 2", "Version 3"),
        "- accuracy 0.71 (between 0.62 and 0.79; on the test set 0.91); during the decline 0.71",
    )
    positions = [reply.find(part) for part in told]
    assert -1 not in positions, (reply, told[positions.index(-1)])
    assert positions == sorted(positions)
    assert ("About 9 more are needed." in reply) is (status == Status.UNDECIDED)
    assert len(reply.splitlines()) <= 15
    assert reply.count("Version 3") == 1
    assert "(in service)" not in reply
    assert not [word for word in JARGON if word in reply]


def test_a_model_that_never_declined_has_no_story_but_a_status(hospital):
    hospital.handle(hospital.evaluation(Status.HEALTHY, Diagnosis.NONE))
    reply = hospital.say("what happened to brain?").reply
    assert reply.startswith("No decline of brain_mri has been found so far.\nVersion 1 serves now. It is healthy")


def test_a_repair_that_a_person_ordered_without_a_decline_is_told_with_its_verdict(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation(Status.HEALTHY, Diagnosis.NONE))
    hospital.say("fine-tune brain, head only")
    assert "ordered to" in hospital.say("why is version 2 of brain not serving?").reply
    hospital.handle(hospital.verdict(Verdict.REJECT, gate_cases=40.0, mcnemar_wins=2.0, mcnemar_losses=2.0))
    reply = hospital.say("why is version 2 of brain not serving?").reply
    assert reply.startswith("No decline of brain_mri has been found so far.\nOn ")
    assert "the gate turned it down" in reply


def test_labels_that_a_judgement_at_the_terminal_has_asked_for_are_not_asked_for_again(hospital):
    """Also where all rungs are used up: the request stands in the verdict's own transaction, with its own number."""
    hospital.cases(tune=60, gate=40, waiting=30)
    hospital.handle(hospital.evaluation())
    with hospital.database.transaction() as tx:
        lack = Shortage("brain_mri", 1, 236, "Version 2 of brain_mri waits for its judgement.")
        asked = request_labels(tx, "admission-1", lack, actor="user:ada")
    data = MaintenancePromotion(
        model="brain_mri",
        challenger=2,
        champion_before=1,
        champion_after=1,
        verdict=Verdict.NEED_LABELS,
        reasons=("Too few.",),
        actor="user:ada",
        origin="owner",
    )
    run = hospital.handle(hospital.record(PROMOTION, "admission-1", data))
    assert run.order_ids == []
    assert asked in run.reply
    assert [row.settings for row in hospital.orders() if row.kind == OrderKind.LABEL_REQUEST] == [{"cases": 236}]
