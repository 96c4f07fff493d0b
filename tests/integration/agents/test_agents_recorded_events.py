"""One history with every kind of event, decided by the rules and beside every kind of bad model: the same orders go out."""

import shutil

import pytest

from schemas.settings import LlmSettings
from schemas.topics import ORDER
from schemas.vocabulary import Diagnosis, OrderState, Status, Verdict
from services.runtime.database import Database


def history(hospital):
    """What is sent and what is kept after evaluations of all statuses and diagnoses and all of the gate's verdicts."""
    hospital.cases(tune=300, gate=200, waiting=40)
    see = lambda status, diagnosis, name, **more: hospital.handle(  # noqa: E731 - one line an event
        hospital.evaluation(status, diagnosis, identity=name, **more)
    )
    see(Status.HEALTHY, Diagnosis.NONE, "healthy")
    see(Status.HEALTHY, Diagnosis.NONE, "uneven", worse_subgroups="station CT2", e_value=0.3)
    see(Status.WATCH, Diagnosis.NONE, "watch")
    see(Status.UNDECIDED, Diagnosis.NONE, "undecided", more_cases_needed=60)
    see(Status.UNDECIDED, Diagnosis.NONE, "hopeless", reason="one class only")
    see(Status.DEGRADED, Diagnosis.PIPELINE, "pipeline")
    see(Status.DEGRADED, Diagnosis.COVARIATE, "covariate")
    answered(hospital, Verdict.REJECT)
    see(Status.DEGRADED, Diagnosis.CONCEPT, "concept")
    answered(hospital, Verdict.NEED_LABELS)
    hospital.finish("done")
    see(Status.DEGRADED, Diagnosis.PREVALENCE, "prevalence")
    answered(hospital, Verdict.PROMOTE)
    see(Status.DEGRADED, Diagnosis.UNKNOWN, "old version")
    see(Status.HEALTHY, Diagnosis.NONE, "new version", version=4)
    sent = [(order.kind, order.model, order.version, order.remedy, order.settings) for order in hospital.sent()]
    kept = [(row.kind, row.model, row.version, row.state, row.remedy, row.settings, row.evaluation_id) for row in hospital.orders()]
    assert len(hospital.outbox(ORDER)) == len({row.event_id for row in hospital.outbox(ORDER)})
    return sent, kept


def answered(hospital, verdict):
    """The gate's verdict on the repair that is under way, where there is one."""
    if any(order.kind == "remedy" and order.state == OrderState.ACCEPTED for order in hospital.orders()):
        hospital.handle(hospital.verdict(verdict))


def in_turn(*answers):
    """A script that goes on by the number of tool answers in the conversation."""

    def script(request, _number):
        done = sum(message["role"] == "tool" for message in request["messages"])
        return answers[min(done, len(answers) - 1)]

    return script


def scripts(call):
    """Models that do harm, by name."""
    to = lambda agent: call("handoff", to_agent=agent, reason="x")  # noqa: E731 - a short name for a long call
    report = call("order_report", model="brain_mri", reason="it fell")
    return {
        "silent": in_turn(""),
        "soothing": in_turn("All models are well, there is nothing to do."),
        "lying": in_turn("I have rolled brain_mri back, accuracy is 0.99 again."),
        "writes its calls": in_turn('```json\n{"name": "order_rollback", "arguments": {"model": "brain_mri"}}\n```'),
        "dies": in_turn(to("monitoring"), report, 503),
        "no json": in_turn(b"<html>gateway</html>"),
        "unknown tools": in_turn(call("os_system", command="rm -rf /"), "done"),
        "junk": in_turn(to("monitoring"), call("order_report", model=7, shell="x"), "done"),
        "other model": in_turn(to("fine_tuning"), call("order_remedy", model="chest_xray", remedy="full"), "done"),
        "rolls back": in_turn(to("fine_tuning"), call("order_rollback", model="brain_mri"), "done"),
        "stops": in_turn(to("fine_tuning"), call("order_stop_serving", model="brain_mri"), "done"),
        "resumes": in_turn(to("fine_tuning"), call("order_resume_serving", model="brain_mri"), "done"),
        "approves": in_turn(call("approve_order"), call("approve_order", model="brain_mri"), "done"),
        "full retraining": in_turn(
            to("monitoring"), report, to("fine_tuning"), call("order_remedy", model="brain_mri", remedy="full", epochs=200), "done"
        ),
        "asks for thousands of labels": in_turn(
            to("evaluation"), call("order_label_request", model="brain_mri", cases=10_000), "done"
        ),
        "reports all the time": in_turn(to("monitoring"), report, report, report, "done"),
    }


RULES = []
"""What the rules decide: worked out once, because it is the same for every model."""


@pytest.fixture
def decided_by_rules(make_hospital, sqlite_template, tmp_path, clock):
    if not RULES:
        start, seconds = clock.at, clock.seconds
        shutil.copy(sqlite_template, tmp_path / "rules.sqlite")
        database = Database(f"sqlite:///{tmp_path / 'rules.sqlite'}", clock)
        RULES.append(history(make_hospital(database)))
        database.close()
        clock.at, clock.seconds = start, seconds
    return RULES[0]


CASES = [(script, "auto") for script in scripts(lambda *_args, **_kwargs: {})]
CASES += [("writes its calls", "tools"), ("full retraining", "tools"), ("writes its calls", "choice")]


@pytest.mark.parametrize(("script", "calls"), CASES)
def test_the_same_orders_go_out(decided_by_rules, make_hospital, sqlite_database, llm_server, script, calls):
    llm = LlmSettings(base_url=llm_server.url, model="scripted", calls=calls, timeout_s=5, max_retries=0)
    llm_server.script = scripts(llm_server.tool)[script]
    assert history(make_hospital(sqlite_database, llm=llm)) == decided_by_rules
    assert {"report", "remedy", "label_request"} <= {kind for kind, *_ in decided_by_rules[1]}
    assert bool(llm_server.requests) == (calls != "choice")
