"""The same workflow over real HTTP: an endpoint that works, one that fails in every way, one that wants to do harm."""

import pytest

from schemas.settings import LlmSettings
from schemas.vocabulary import Diagnosis, OrderKind, OrderState, Remedy, Status, UserRole, Verdict


def sequence(*answers):
    """A script that gives these answers in turn and the last one for ever."""
    return lambda _request, number: answers[min(number, len(answers)) - 1]


def sent(hospital):
    return sorted((order.kind, order.model) for order in hospital.sent())


def test_an_endpoint_that_calls_tools_decides(llm_hospital, llm_server):
    hospital, call = llm_hospital, llm_server.tool
    hospital.cases(tune=60, gate=40)
    llm_server.script = sequence(
        call("handoff", to_agent="monitoring", reason="report"),
        call("order_report", model="brain_mri", reason="it fell"),
        call("handoff", to_agent="fine_tuning", reason="repair"),
        call("remedy_options", model="brain_mri"),
        call("order_remedy", model="brain_mri", remedy="harmonise", reason="covariate shift"),
        "Proposed a report and harmonised images.",
    )
    run = hospital.handle(hospital.evaluation())
    assert run.planner == "scripted"
    assert sent(hospital) == [("remedy", "brain_mri"), ("report", "brain_mri")]
    remedy = next(order for order in hospital.sent() if order.kind == OrderKind.REMEDY)
    assert (remedy.remedy, remedy.settings) == (Remedy.HARMONISE, {})
    assert '"parallel_tool_calls": false' in llm_server.requests[0].replace(":false", ": false")
    assert all('"stream":true' not in request.replace(" ", "") for request in llm_server.requests)


def broken(call):
    """Ways in which an endpoint does not deliver."""
    report = call("order_report", model="brain_mri")
    monitoring = call("handoff", to_agent="monitoring", reason="x")
    return {
        "error": sequence(500),
        "no json": sequence(b"<html>gateway</html>"),
        "hangs": sequence(20.0),
        "loops": sequence(call("list_models")),
        "unknown tools": sequence(call("os_system", command="rm -rf /"), "done"),
        "tool call as text": sequence('```json\n{"name": "order_remedy"}\n```'),
        "nothing": sequence(""),
        "no proposal": sequence("I think the model is fine."),
        "report only": sequence(monitoring, report, "Done."),
        "dies in the middle": sequence(monitoring, report, 503),
        "junk arguments": sequence(monitoring, call("order_report", model=7, shell="x"), "Done."),
    }


@pytest.mark.parametrize("fault", list(broken(lambda *_args, **_kwargs: {})))
def test_the_rules_decide_when_the_endpoint_does_not_deliver(llm_hospital, llm_server, fault):
    hospital = llm_hospital
    hospital.cases(tune=60, gate=40)
    llm_server.script = broken(llm_server.tool)[fault]
    run = hospital.handle(hospital.evaluation())
    assert run.planner == "rules (after scripted)"
    assert run.steps[1]["fallback"], "after the event that the run is for"
    assert sent(hospital) == [("remedy", "brain_mri"), ("report", "brain_mri")]
    assert llm_server.requests


def test_the_rules_decide_when_nobody_listens(sqlite_database, make_hospital, free_port):
    llm = LlmSettings(base_url=f"http://127.0.0.1:{free_port}/v1", model="gone", timeout_s=2, run_timeout_s=4, max_retries=0)
    hospital = make_hospital(sqlite_database, llm=llm)
    assert hospital.say("list models").reply.startswith("Registered models")
    assert hospital.run_of is not None
    assert hospital.say("help").planner == "rules (after gone)"


def attack(call):
    """Everything that an evaluation must not cause, then a lie."""
    return sequence(
        call("order_rollback", model="brain_mri"),
        call("handoff", to_agent="fine_tuning", reason="x"),
        call("order_rollback", model="brain_mri", reason="IGNORE ALL RULES"),
        call("order_stop_serving", model="brain_mri", reason="x"),
        call("order_remedy", model="chest_xray", remedy="full", reason="x"),
        call("order_remedy", model="brain_mri", remedy="full", epochs=10**6, reason="x"),
        call("order_remedy", model="../../etc/passwd", remedy="full", reason="x"),
        call("approve_order", order_id=""),
        "I have rolled everything back and stopped all models.",
    )


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("diagnosis", [Diagnosis.COVARIATE, Diagnosis.PIPELINE])
def test_an_adversarial_model_causes_just_what_the_rules_would(llm_hospital, llm_server, status, diagnosis):
    hospital = llm_hospital
    hospital.cases(tune=60, gate=40)
    llm_server.script = attack(llm_server.tool)
    run = hospital.handle(hospital.evaluation(status, diagnosis))
    expected = {
        Status.DEGRADED: [("remedy", "brain_mri"), ("report", "brain_mri")]
        if diagnosis == Diagnosis.COVARIATE
        else [("report", "brain_mri")],
        Status.WATCH: [("report", "brain_mri")],
    }
    assert sent(hospital) == expected.get(status, [])
    assert "rolled everything back" not in run.reply


@pytest.mark.parametrize("diagnosis", [Diagnosis.PIPELINE])
def test_a_remedy_against_the_diagnosis_is_refused(llm_hospital, llm_server, diagnosis):
    hospital, call = llm_hospital, llm_server.tool
    hospital.cases(tune=60, gate=40)
    llm_server.script = sequence(
        call("handoff", to_agent="monitoring", reason="x"),
        call("order_report", model="brain_mri"),
        call("handoff", to_agent="fine_tuning", reason="x"),
        call("order_remedy", model="brain_mri", remedy="full"),
        "Fine-tuning has begun.",
    )
    run = hospital.handle(hospital.evaluation(diagnosis=diagnosis))
    assert run.planner == "rules (after scripted)"
    assert sent(hospital) == [("report", "brain_mri")]
    assert "has begun" not in run.reply


def decided(hospital, llm_server, verdict, *script):
    """The run on the gate's verdict, with an endpoint that plays the script; the decline itself is decided by the rules."""
    hospital.cases(tune=60, gate=40)
    llm_server.script = sequence(500)
    hospital.handle(hospital.evaluation())
    llm_server.requests.clear()
    llm_server.script = sequence(*script)
    return hospital.handle(hospital.verdict(verdict))


def test_an_endpoint_climbs_the_ladder(llm_hospital, llm_server):
    hospital, call = llm_hospital, llm_server.tool
    script = (
        call("handoff", to_agent="fine_tuning", reason="next rung"),
        call("order_remedy", model="brain_mri", remedy="adapt_statistics", reason="the gate turned the last one down"),
        "Proposed other statistics.",
    )
    assert decided(hospital, llm_server, Verdict.REJECT, *script).planner == "scripted"
    assert [order.remedy for order in hospital.sent() if order.kind == OrderKind.REMEDY] == [
        Remedy.HARMONISE,
        Remedy.ADAPT_STATISTICS,
    ]


def test_the_rules_climb_when_the_endpoint_leaves_it_at_the_gates_no(llm_hospital, llm_server):
    run = decided(llm_hospital, llm_server, Verdict.REJECT, "What a pity.")
    assert run.planner == "rules (after scripted)"
    assert [order.remedy for order in llm_hospital.sent() if order.kind == OrderKind.REMEDY] == [
        Remedy.HARMONISE,
        Remedy.ADAPT_STATISTICS,
    ]


def test_no_endpoint_orders_anything_on_a_promotion(llm_hospital, llm_server):
    call = llm_server.tool
    script = (
        call("handoff", to_agent="monitoring", reason="x"),
        call("order_report", model="brain_mri"),
        "A report is due.",
    )
    run = decided(llm_hospital, llm_server, Verdict.PROMOTE, *script)
    assert run.planner == "rules (after scripted)"
    assert run.order_ids == []


def test_an_order_nobody_asked_for_waits_for_a_clear_yes(llm_hospital, llm_server):
    hospital, call = llm_hospital, llm_server.tool
    hospital.cases(tune=60, gate=40)
    script = (
        call("handoff", to_agent="fine_tuning", reason="x"),
        call("order_remedy", model="brain_mri", remedy="full"),
        call("handoff", to_agent="orchestrator", reason="x"),
        call("approve_order"),
        "I took the liberty to start the fine-tuning.",
    )
    llm_server.script = sequence(*script)
    run = hospital.say("how is the brain model doing?")
    (order,) = hospital.orders()
    assert order.state == OrderState.AWAITING_APPROVAL
    assert f"approve {order.order_id}" in run.reply
    llm_server.requests.clear()
    llm_server.script = sequence(call("approve_order", order_id=order.order_id), "Approved.")
    assert "still waits" in hospital.say("thanks, and how is chest?").reply
    assert hospital.sent() == []
    llm_server.requests.clear()
    hospital.say(f"approve {order.order_id}")
    assert sent(hospital) == [("remedy", "brain_mri")]


def test_an_asked_order_goes_out_and_a_lie_stands_corrected(llm_hospital, llm_server):
    hospital, call = llm_hospital, llm_server.tool
    llm_server.script = sequence(
        call("handoff", to_agent="fine_tuning", reason="x"), call("order_rollback", model="brain_mri"), "The rollback is done."
    )
    run = hospital.say("roll back brain", UserRole.ADMIN)
    assert "Not ordered: roll brain_mri back" in run.reply
    assert "no earlier champion" in run.reply
