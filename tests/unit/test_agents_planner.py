"""The rule planner is a whole LlamaIndex model, and a function of the transcript alone."""

import json

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM

from agents.planner.llm import RulePlanner, transcript_of
from agents.planner.policy import next_step
from agents.planner.transcript import Act, Observation, Say, Transcript
from agents.tools.answers import ModelLine, Models
from agents.tools.catalogue import BY_NAME, CATALOGUE, ORCHESTRATOR
from agents.workflow import ROLES

HEALTHY = json.dumps({"kind": "evaluation", "model": "brain", "version": 1, "status": "healthy", "diagnosis": "none", "cases": 90})
COMMAND = json.dumps({"kind": "command", "text": "how is brain?"})
MODELS = Models(models=(ModelLine(name="brain", task="t", champion=1, serving=True, status="healthy"),)).model_dump_json()
ROOT_TOOLS = [spec.name for spec in CATALOGUE if spec.belongs_to(ORCHESTRATOR)]


def test_it_is_a_model_that_calls_tools():
    planner = RulePlanner()
    assert isinstance(planner, FunctionCallingLLM)
    assert planner.metadata.is_function_calling_model
    assert planner.metadata.model_name == "rules"


async def test_every_way_to_ask_gives_the_same_answer():
    planner, messages = RulePlanner(), [ChatMessage(role="user", content=HEALTHY)]
    answers = [planner.chat(messages).message.content, (await planner.achat(messages)).message.content]
    answers += [planner.complete(HEALTHY).text, (await planner.acomplete(HEALTHY)).text]
    answers += [chunk.message.content for chunk in planner.stream_chat(messages)]
    answers += [chunk.message.content async for chunk in await planner.astream_chat(messages)]
    answers += [chunk.text for chunk in planner.stream_complete(HEALTHY)]
    answers += [chunk.text async for chunk in await planner.astream_complete(HEALTHY)]
    assert len(answers) == 8
    assert set(answers) == {"brain is healthy on 90 cases; nothing to do."}


def test_a_group_that_is_worse_than_the_others_is_reported_and_nothing_is_repaired():
    facts = json.loads(HEALTHY) | {"evidence": {"worse_subgroups": "StationName CT2, AgeBand 80+"}}
    tools = ["order_report", "remedy_options", "order_remedy"]
    step = next_step(Transcript(json.dumps(facts)), tools)
    assert isinstance(step, Act)
    assert step.tool == "order_report"
    assert "StationName CT2, AgeBand 80+" in step.arguments["reason"]
    after = next_step(Transcript(json.dumps(facts), observed=(Observation("order_report", {}, "ordered"),)), tools)
    assert isinstance(after, Say)
    assert "A person has to look at why" in after.text


def test_a_small_fall_is_reported_and_its_repair_left_to_a_person():
    facts = json.loads(HEALTHY) | {"status": "degraded", "diagnosis": "covariate", "evidence": {"probability": 0.2}}
    tools = ["order_report", "remedy_options", "order_remedy"]
    step = next_step(Transcript(json.dumps(facts)), tools)
    assert isinstance(step, Act)
    assert (step.tool, "smaller than 3 points" in step.arguments["reason"]) == ("order_report", True)
    told = (Observation("order_report", {}, "ordered"),)
    after = next_step(Transcript(json.dumps(facts), observed=told), tools)
    assert isinstance(after, Say)
    facts["evidence"]["probability"] = 0.6
    assert next_step(Transcript(json.dumps(facts), observed=told), tools) == Act("remedy_options", {"model": "brain"})


def test_the_same_transcript_gives_the_same_step():
    transcript = Transcript(COMMAND, observed=(Observation("list_models", {}, MODELS),))
    assert (
        next_step(transcript, ["model_status"])
        == next_step(transcript, ["model_status"])
        == Act("model_status", {"model": "brain"})
    )


def test_a_tool_of_another_agent_is_reached_by_a_handoff():
    step = next_step(Transcript(COMMAND, observed=(Observation("list_models", {}, MODELS),)), ROOT_TOOLS)
    assert isinstance(step, Act)
    assert (step.tool, step.arguments["to_agent"]) == ("handoff", "monitoring")


@pytest.mark.parametrize("message", ["", "no json", "[]", '{"kind": "something"}'])
def test_a_message_that_is_not_ours_causes_nothing(message):
    assert isinstance(next_step(Transcript(message), ROOT_TOOLS), Say)


def test_tool_calls_are_read_back_from_the_conversation():
    planner = RulePlanner()
    messages = [ChatMessage(role="user", content=COMMAND)]
    response = planner.chat(messages, tools=ROOT_TOOLS)
    (selection,) = planner.get_tool_calls_from_response(response)
    assert selection.tool_name == "list_models"
    messages += [response.message, ChatMessage(role="tool", content=MODELS, additional_kwargs={"tool_call_id": selection.tool_id})]
    assert transcript_of(messages).observed == (Observation("list_models", {}, MODELS),)
    with pytest.raises(ValueError, match="no tool call"):
        planner.get_tool_calls_from_response(planner.chat([ChatMessage(role="user", content=HEALTHY)]))


def test_every_tool_has_an_agent_a_description_and_a_name_of_its_own():
    assert {spec.agent for spec in CATALOGUE} == set(ROLES)
    assert len(BY_NAME) == len(CATALOGUE)
    assert all(spec.description for spec in CATALOGUE)
