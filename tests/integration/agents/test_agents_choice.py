"""Endpoints that call no tools: they choose under a schema, for the commands that the rules do not understand."""

import json

import pytest

from schemas.settings import LlmSettings
from schemas.vocabulary import OrderState

STRANGE = "where does the needle of brain_mri point"
ORDER = "brain_mri deserves another round of schooling"


def choosing(hospital_of, database, server, calls="choice"):
    llm = LlmSettings(base_url=server.url, model="small", calls=calls, timeout_s=2, run_timeout_s=30, max_retries=0)
    return hospital_of(database, llm=llm)


def answer(tool, **more):
    return json.dumps({"requests": [{"tool": tool, **more}]})


@pytest.fixture
def small(make_hospital, sqlite_database, llm_server):
    return choosing(make_hospital, sqlite_database, llm_server)


def test_what_the_rules_understand_needs_no_model(small, llm_server):
    run = small.say("how is brain_mri doing?")
    assert (run.planner, llm_server.requests) == ("rules", [])
    assert "brain_mri, version 1" in run.reply


def test_what_they_do_not_is_chosen_under_a_schema(small, llm_server):
    llm_server.script = lambda _request, _number: answer("model_status")
    run = small.say(STRANGE)
    assert run.planner == "small"
    assert "brain_mri, version 1" in run.reply
    (request,) = map(json.loads, llm_server.requests)
    schema = request["response_format"]["json_schema"]["schema"]["properties"]["requests"]["items"]["properties"]
    assert {"model_status", "order_remedy", "none"} <= set(schema["tool"]["enum"])
    assert "tools" not in request


def test_a_fenced_answer_is_a_choice_too(small, llm_server):
    llm_server.script = lambda _request, _number: f"```json\n{answer('explain_decline')}\n```"
    assert [step["act"] for step in small.say(STRANGE).steps if "act" in step][-1] == "explain_decline"


def test_a_chosen_order_waits_for_a_clear_yes(small, llm_server):
    small.cases(tune=60, gate=40)
    llm_server.script = lambda _request, _number: answer("order_remedy")
    run = small.say(ORDER)
    (order,) = small.orders()
    assert order.state == OrderState.AWAITING_APPROVAL
    assert f"approve {order.order_id}" in run.reply
    assert small.sent() == []


def test_a_chosen_decision_waits_too(small, llm_server):
    small.cases(tune=60, gate=40)
    llm_server.script = lambda _request, _number: answer("order_remedy")
    small.say(ORDER)
    llm_server.script = lambda _request, _number: answer("approve_order")
    assert "still waits" in small.say("brain_mri has my blessing, whatever it costs").reply
    assert small.sent() == []


def test_numbers_and_days_are_read_from_the_words(small, llm_server):
    llm_server.script = lambda _request, _number: answer("replay_evaluation")
    run = small.say("the last 30 cases once more through the mill for brain_mri")
    (call,) = [step for step in run.steps if step.get("act") == "replay_evaluation"]
    assert call["arguments"] == {"model": "brain_mri", "cases": 30}


def test_each_of_several_choices_has_its_own_words(small, llm_server):
    first, second = "brain_mri deserves a fresh 20 cases through the mill", "chest_xray a fresh 40 cases through the mill"
    chosen = [{"tool": "order_label_request", "words": first}]
    chosen += [{"tool": "order_label_request", "words": second}]
    llm_server.script = lambda _request, _number: json.dumps({"requests": chosen})
    small.say(f"{first}, {second}")
    assert {(order.model, order.settings["cases"]) for order in small.orders()} == {("brain_mri", 20), ("chest_xray", 40)}


def test_a_model_is_taken_from_the_words_alone(small, llm_server):
    llm_server.script = lambda _request, _number: answer("order_rollback", model="chest_xray")
    assert "Which model do you mean" in small.say("out with the new, in with the old, at last").reply


def test_a_model_that_is_missing_is_asked_for(small, llm_server):
    llm_server.script = lambda _request, _number: answer("order_rollback")
    run = small.say("out with the new, in with the old")
    assert "Which model do you mean" in run.reply
    assert small.orders() == []


@pytest.mark.parametrize("rubbish", ["", "no idea", '{"requests": 7}', "[]", 503])
def test_rubbish_is_no_choice(small, llm_server, rubbish):
    llm_server.script = lambda _request, _number: rubbish
    run = small.say(STRANGE)
    assert run.planner == "rules (after small)"
    assert "did not understand" in run.reply


@pytest.mark.parametrize("tool", ["none", "os_system"])
def test_no_tool_is_nothing_understood(small, llm_server, tool):
    llm_server.script = lambda _request, _number: answer(tool)
    assert "did not understand" in small.say(STRANGE).reply


def test_evaluations_are_left_to_the_policy(small, llm_server):
    run = small.handle(small.evaluation())
    assert (run.planner, llm_server.requests) == ("rules", [])


def test_an_endpoint_that_writes_its_calls_is_learned_once(make_hospital, sqlite_database, llm_server):
    hospital = choosing(make_hospital, sqlite_database, llm_server, "auto")
    consumer = hospital.consumer()
    hospital.consumer = lambda: consumer

    def script(request, _number):
        return '```json\n{"name": "model_status"}\n```' if "tools" in request else answer("model_status")

    llm_server.script = script
    assert hospital.say(STRANGE).planner == "small"
    assert ["tools" in json.loads(request) for request in llm_server.requests] == [True, False]
    assert hospital.say(STRANGE, thread="other").planner == "small"
    assert ["tools" in json.loads(request) for request in llm_server.requests] == [True, False, False]
    assert hospital.handle(hospital.evaluation()).planner == "rules"


def test_written_calls_count_where_the_site_says_tools(make_hospital, sqlite_database, llm_server):
    hospital = choosing(make_hospital, sqlite_database, llm_server, "tools")
    answers = ['```json\n{"name": "list_orders", "arguments": {"waiting": true}}\n```', "Nothing waits."]
    llm_server.script = lambda _request, number: answers[number - 1]
    run = hospital.say("which orders are waiting?")
    assert run.planner == "small"
    assert [step["arguments"] for step in run.steps if step.get("act") == "list_orders"] == [{"waiting": True}]


def test_figures_that_no_tool_gave_are_not_passed_on(make_hospital, sqlite_database, llm_server):
    hospital = choosing(make_hospital, sqlite_database, llm_server, "tools")
    llm_server.script = lambda _request, _number: "Its accuracy is 93.7 %."
    run = hospital.say("how is brain_mri doing?")
    assert run.planner == "rules (after small)"
    assert "93.7" not in run.reply
