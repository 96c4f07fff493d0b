"""The policy: the next step as a deterministic function of the transcript."""

import json
from collections.abc import Collection
from datetime import date
from typing import Any

from agents.planner import commands, evaluations, promotions
from agents.planner.transcript import Act, Say, Step, Transcript
from agents.tools.catalogue import BY_NAME


def next_step(transcript: Transcript, tools: Collection[str]) -> Step:
    """What to do next; a tool that the present agent does not have is reached by a handoff to its owner."""
    return reached(plan(transcript), tools)


def reached(step: Step, tools: Collection[str]) -> Step:
    """The step, or the handoff that leads to it."""
    if isinstance(step, Act) and step.tool not in tools:
        owner = BY_NAME[step.tool].agent
        return Act("handoff", {"to_agent": owner, "reason": f"{step.tool} is a tool of {owner}"})
    return step


def plan(transcript: Transcript) -> Step:
    """What to do next, whoever has the tool for it."""
    message = _message(transcript.message)
    if message.get("kind") == "evaluation":
        return evaluations.next_step(message, transcript.observed)
    if message.get("kind") == "promotion":
        return promotions.next_step(message, transcript.observed)
    said = command_of(transcript)
    return commands.next_step(said[0], transcript, said[1]) if said is not None else Say("I did not understand the message.")


def command_of(transcript: Transcript) -> tuple[str, date | None] | None:
    """What a person said, and on which day; None where nobody said anything."""
    message = _message(transcript.message)
    return (str(message.get("text", "")), _day(message.get("today"))) if message.get("kind") == "command" else None


def _day(text: object) -> date | None:
    try:
        return date.fromisoformat(str(text))
    except ValueError:
        return None


def _message(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
