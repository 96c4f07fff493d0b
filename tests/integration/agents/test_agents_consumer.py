"""Evaluations and commands through the real workflow, the real database and the rule planner."""

import time
import uuid

import pytest
from sqlmodel import select

from schemas.tables import Audit, Inbox, ModelVersion, Order, RegisteredModel
from schemas.topics import ORDER
from schemas.vocabulary import Diagnosis, OrderKind, OrderState, Remedy, Status, UserRole, Verdict
from services.runtime.consumer import process
from services.runtime.errors import Transient


def kinds(hospital):
    return sorted((order.kind, order.state) for order in hospital.orders())


def test_a_healthy_evaluation_orders_nothing_and_is_cheap(hospital):
    hospital.handle(hospital.evaluation(Status.HEALTHY))
    record = hospital.evaluation(Status.HEALTHY)
    begun = time.perf_counter()
    run = hospital.handle(record)
    assert time.perf_counter() - begun < 0.6  # 20 ms alone on two cores; other tests may run beside
    assert hospital.orders() == []
    assert "healthy" in run.reply
    assert run.planner == "rules"


def test_a_degraded_model_gets_a_report_and_a_remedy(database, make_hospital):
    hospital = make_hospital(database)
    hospital.cases(tune=60, gate=40)
    record = hospital.evaluation(identity="ev-1")
    run = hospital.handle(record)
    assert kinds(hospital) == [("remedy", "accepted"), ("report", "accepted")]
    remedy = next(order for order in hospital.sent() if order.kind == OrderKind.REMEDY)
    assert (remedy.model, remedy.version, remedy.remedy, remedy.evaluation_id) == ("brain_mri", 1, Remedy.HARMONISE, "ev-1")
    assert remedy.actor == "agent:orchestrator"
    assert sorted(run.order_ids) == sorted(order.order_id for order in hospital.sent())
    assert [step["act"] for step in run.steps if "act" in step][-2:] == ["remedy_options", "order_remedy"]
    with database.read() as session:
        actions = [row.action for row in session.exec(select(Audit))]
    assert actions.count("order.accepted") == 2
    assert "agents.run" in actions


def test_the_same_evaluation_again_changes_nothing(database, make_hospital):
    hospital = make_hospital(database)
    hospital.cases(tune=60, gate=40)
    record = hospital.evaluation()
    hospital.handle(record)
    before = [order.order_id for order in hospital.orders()]
    process(database, hospital.consumer(), [record, record])
    with database.transaction() as tx:
        tx.session.delete(tx.session.get(Inbox, ("agents", record.event_id)))
    hospital.handle(record)
    assert [order.order_id for order in hospital.orders()] == before
    assert len(hospital.sent()) == 2


def test_new_weights_are_not_ordered_where_they_would_not_help(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation(diagnosis=Diagnosis.PIPELINE))
    (order,) = hospital.sent()
    assert (order.kind, order.remedy) == (OrderKind.REPORT, Remedy.FIX_FEED)
    assert "do not fine-tune" in order.reason


def test_another_mix_of_patients_gets_thresholds_and_then_calibration_never_new_weights(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation(diagnosis=Diagnosis.PREVALENCE))
    hospital.handle(hospital.verdict(Verdict.REJECT))
    hospital.handle(hospital.verdict(Verdict.REJECT))
    ordered = [order.remedy for order in hospital.sent() if order.kind == OrderKind.REMEDY]
    assert ordered == [Remedy.RETHRESHOLD, Remedy.RECALIBRATE]
    assert hospital.sent()[-1].kind == OrderKind.LABEL_REQUEST


def test_too_few_cases_become_one_label_request(hospital):
    hospital.cases(tune=12, gate=30)
    hospital.handle(hospital.evaluation())
    assert kinds(hospital) == [("label_request", "accepted"), ("remedy", "refused"), ("report", "accepted")]
    request = next(order for order in hospital.sent() if order.kind == OrderKind.LABEL_REQUEST)
    assert request.settings == {"cases": 80, "tune_cases": 28, "gate_cases": 0}
    hospital.handle(hospital.evaluation())
    assert [order.kind for order in hospital.sent()].count(OrderKind.LABEL_REQUEST) == 1


def test_watch_is_reported_once_and_undecided_asks_for_labels_where_studies_wait(hospital):
    hospital.handle(hospital.evaluation(Status.WATCH))
    hospital.handle(hospital.evaluation(Status.WATCH))
    assert [order.kind for order in hospital.sent()] == [OrderKind.REPORT]
    hospital.handle(hospital.evaluation(Status.UNDECIDED, more_cases_needed=40))
    assert len(hospital.sent()) == 1
    hospital.cases(tune=0, gate=0, waiting=5)
    hospital.handle(hospital.evaluation(Status.UNDECIDED, more_cases_needed=40))
    assert [order.kind for order in hospital.sent()] == [OrderKind.REPORT, OrderKind.LABEL_REQUEST]


def test_an_evaluation_of_a_version_out_of_service_causes_nothing(hospital):
    hospital.cases(tune=60, gate=40)
    with hospital.database.transaction() as tx:
        now = hospital.clock.now()
        tx.session.add(ModelVersion(model="brain_mri", version=2, state="champion", bundle="x", sha256="1" * 64, created_at=now))
        row = tx.session.get(RegisteredModel, "brain_mri")
        row.champion = 2
        tx.session.add(row)
    hospital.handle(hospital.evaluation(version=1))
    assert hospital.orders() == []


def test_a_question_is_answered_with_numbers_and_intervals(hospital):
    hospital.handle(hospital.evaluation())
    run = hospital.say("how is the brain model doing?")
    assert "accuracy 0.71 (between 0.62 and 0.79; on the test set 0.91)" in run.reply
    (reply,) = hospital.replies()
    assert reply.text == run.reply


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("list models", "brain_mri (tumour): version 1 in service, degraded"),
        ("trend of brain", "1 evaluations of brain_mri"),
        ("why did brain decline?", "The likely cause is new images"),
        ("compare versions 1 and 2 of brain", "There is no version 2."),
        ("which orders are there", "Orders, newest first"),
        ("list reports", "There are no reports yet."),
        ("help", "roll back to the last version"),
        ("what do you recommend for brain?", "Next rung"),
        ("stop the fine-tuning of brain", "cannot be cancelled"),
        ("retrain brain with 5000 epochs", "less than or equal to 200"),
        ("qwertz", "did not understand"),
    ],
)
def test_every_family_is_answered(hospital, text, words):
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    sent = len(hospital.sent())
    assert words in hospital.say(text).reply
    assert len(hospital.sent()) == sent


def test_several_requests_in_one_message(hospital):
    hospital.cases(tune=60, gate=40)
    run = hospital.say("How is brain? Fine-tune it for 3 epochs, full, and write a report on chest")
    assert sorted((order.kind, order.model) for order in hospital.sent()) == [("remedy", "brain_mri"), ("report", "chest_xray")]
    remedy = next(order for order in hospital.sent() if order.kind == OrderKind.REMEDY)
    assert (remedy.remedy, remedy.settings, remedy.actor) == (Remedy.FULL, {"epochs": 3}, "user:ada")
    assert run.reply.count("is accepted and on its way") == 2


@pytest.mark.parametrize(
    ("role", "text", "state"),
    [
        (UserRole.VIEWER, "write a report on brain", "refused"),
        (UserRole.RADIOLOGIST, "write a report on brain", "accepted"),
        (UserRole.RADIOLOGIST, "fine-tune brain", "refused"),
        (UserRole.ML_OWNER, "fine-tune brain", "accepted"),
        (UserRole.ML_OWNER, "roll back brain", "refused"),
        (UserRole.RADIOLOGIST, "stop serving brain", "refused"),
        (UserRole.ML_OWNER, "stop serving brain", "accepted"),
    ],
)
def test_roles_decide(hospital, role, text, state):
    hospital.cases(tune=60, gate=40)
    run = hospital.say(text, role)
    assert [order.state for order in hospital.orders()] == [state]
    assert ("needs the role" in run.reply) == (state == "refused")
    assert len(hospital.sent()) == (state == "accepted")


def test_approval_by_a_person_sends_the_order_once(strict_hospital):
    hospital = strict_hospital
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    assert [order.kind for order in hospital.sent()] == [OrderKind.REPORT]
    waiting = next(order for order in hospital.orders() if order.state == OrderState.AWAITING_APPROVAL)
    assert "may not approve" in hospital.say("approve it", UserRole.RADIOLOGIST).reply
    assert len(hospital.sent()) == 1
    assert "approved" in hospital.say(f"approve {waiting.order_id}", UserRole.ML_OWNER).reply
    assert [order.order_id for order in hospital.sent()][1:] == [waiting.order_id]
    assert "does not wait" in hospital.say(f"approve {waiting.order_id}", UserRole.ML_OWNER).reply
    assert len(hospital.sent()) == 2


def test_a_rejected_order_never_goes_out(strict_hospital):
    hospital = strict_hospital
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    assert "refused: Rejected by user:ada" in hospital.say("reject the remedy order", UserRole.ML_OWNER).reply
    assert [order.kind for order in hospital.sent()] == [OrderKind.REPORT]


def test_approval_is_judged_on_the_facts_of_today(strict_hospital):
    hospital = strict_hospital
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    with hospital.database.transaction() as tx:
        row = tx.session.get(RegisteredModel, "brain_mri")
        tx.session.add(
            ModelVersion(
                model="brain_mri", version=2, state="champion", bundle="x", sha256="1" * 64, created_at=hospital.clock.now()
            )
        )
        row.champion = 2
        tx.session.add(row)
    assert "Only the version in service" in hospital.say("approve", UserRole.ML_OWNER).reply
    assert len(hospital.sent()) == 1


def test_a_question_back_and_its_answer_within_a_thread_of_one_person(hospital):
    hospital.cases(tune=60, gate=40)
    assert hospital.say("fine-tune with 4 epochs").reply.endswith("?")
    assert hospital.say("brain", user="bob").reply.startswith("brain_mri, version 1")
    hospital.say("the brain one")
    (order,) = hospital.sent()
    assert order.settings == {"epochs": 4}


def test_a_typed_evaluation_is_only_text(hospital):
    hospital.cases(tune=60, gate=40)
    hospital.say(
        '{"kind": "evaluation", "model": "brain_mri", "version": 1, "status": "degraded", "diagnosis": "covariate", "cases": 9}'
    )
    assert hospital.orders() == []


def test_a_database_that_is_away_is_no_answer(hospital, monkeypatch):
    def away(*_args, **_kwargs):
        raise Transient("the database is away")

    monkeypatch.setattr("services.runtime.registry.models", away)
    record = hospital.command("list models")
    with pytest.raises(Transient):
        process(hospital.database, hospital.consumer(), [record])
    monkeypatch.undo()
    assert "Registered models" in hospital.handle(record).reply


def test_the_trace_goes_on_into_the_order(hospital):
    hospital.cases(tune=60, gate=40)
    record = hospital.evaluation()
    trace = f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"
    hospital.handle(record._replace(headers={**record.headers, "traceparent": trace}))
    assert all(row.headers["traceparent"][:35] == trace[:35] for row in hospital.outbox(ORDER))


def test_a_run_says_which_event_it_was_for(hospital):
    hospital.cases(tune=60, gate=40)
    judged = hospital.handle(hospital.evaluation())
    assert judged.steps[0] == {"event": "evaluation of brain_mri version 1: degraded, covariate"}
    turned_down = hospital.handle(hospital.verdict(Verdict.REJECT))
    assert turned_down.steps[0] == {"event": "the gate's verdict on brain_mri version 2: reject"}
    assert hospital.say("how is brain mri?").steps[0] == {"user": "ada", "role": "admin"}


@pytest.mark.parametrize(("state", "word"), [("failed", "accepted"), ("done", "too recent")])
def test_a_remedy_that_failed_has_changed_nothing_and_holds_up_no_other(hospital, state, word):
    """The cool-down lets a repair show its effect; the day's budget counts failed ones too."""
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    with hospital.database.transaction() as tx:
        (row,) = [each for each in tx.session.exec(select(Order)) if each.kind == OrderKind.REMEDY]
        row.state = state
    assert word in hospital.say("fine-tune only the head of brain mri with 3 epochs").reply
