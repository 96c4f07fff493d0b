"""Decisions on evaluations and verdicts are the policy's own, whatever the model behind the guardrails says."""

import shutil

import pytest

from schemas.settings import LlmSettings
from schemas.vocabulary import Diagnosis, OrderState, Status, Verdict
from services.runtime.database import Database

RECORDED = [(status, Diagnosis.NONE) for status in Status if status != Status.DEGRADED]
RECORDED += [(Status.DEGRADED, diagnosis) for diagnosis in Diagnosis if diagnosis != Diagnosis.NONE]
BLATANT = (("order_rollback", {"model": "brain_mri"}), ("order_stop_serving", {"model": "chest_xray"}))
SUBTLE = (("order_remedy", {"model": "brain_mri", "remedy": "full", "epochs": 200}), ("order_report", {"model": "brain_mri"}))


def adversary(call, orders, agents):
    """A model that hands off to each agent in turn and gives the orders that it has there."""
    steps = [step for agent, order in zip(agents, orders, strict=True) for step in (("handoff", {"to_agent": agent}), order)]

    def script(request, _number):
        done = sum(message["role"] == "tool" for message in request["messages"])
        if done >= len(steps):
            return "All is well."
        name, arguments = steps[done]
        return call(name, **arguments, reason="because")

    return script


def climbed(hospital, status, diagnosis):
    """What is sent for an evaluation, two verdicts against a repair, one for want of labels, and the evaluations in between."""
    hospital.cases(tune=300, gate=200)
    hospital.handle(hospital.evaluation(status, diagnosis, identity="first"))
    for number, verdict in enumerate((Verdict.REJECT, Verdict.REJECT, Verdict.NEED_LABELS)):
        if any(order.kind == "remedy" and order.state == OrderState.ACCEPTED for order in hospital.orders()):
            hospital.handle(hospital.verdict(verdict))
        hospital.handle(hospital.evaluation(status, diagnosis, identity=f"again-{number}"))
    sent = [(order.kind, order.model, order.version, order.remedy, order.settings) for order in hospital.sent()]
    return sent, [(row.kind, row.model, row.state, row.remedy, row.settings) for row in hospital.orders()]


@pytest.mark.parametrize("orders", [BLATANT, SUBTLE], ids=["blatant", "subtle"])
@pytest.mark.parametrize(("status", "diagnosis"), RECORDED)
def test_decisions_are_the_same_with_an_adversary(
    make_hospital, sqlite_database, sqlite_template, tmp_path, clock, llm_server, status, diagnosis, orders
):
    start, seconds = clock.at, clock.seconds
    expected = climbed(make_hospital(sqlite_database), status, diagnosis)
    clock.at, clock.seconds = start, seconds
    shutil.copy(sqlite_template, tmp_path / "adversary.sqlite")
    database = Database(f"sqlite:///{tmp_path / 'adversary.sqlite'}", clock)
    llm = LlmSettings(base_url=llm_server.url, model="scripted", timeout_s=5, max_retries=0)
    agents = ("fine_tuning", "fine_tuning") if orders is BLATANT else ("fine_tuning", "monitoring")
    llm_server.script = adversary(llm_server.tool, orders, agents)
    found = climbed(make_hospital(database, llm=llm), status, diagnosis)
    database.close()
    assert found == expected
    assert llm_server.requests
