"""What a person's command leads to: the requests in it, one tool call after the other, then the answer in plain words."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Final

from agents.planner.grammar import CANCEL_RUN
from agents.planner.language import Request, parse
from agents.planner.transcript import Act, Observation, Say, Step, Transcript
from agents.tools.answers import Answer, Models, Problem, RemedyOptions
from agents.tools.catalogue import BY_NAME
from schemas.vocabulary import Remedy

NOTHING_UNDERSTOOD: Final = (
    "I did not understand that, and have done nothing. I can tell you about models, evaluations, orders and reports, "
    "write a report, ask for labels, fine-tune, roll back, stop and resume. What would you like?"
)
PASSED_ON: Final = "Understood."
CANNOT_CANCEL: Final = (
    "A remedy that has begun cannot be cancelled; the gate decides whether its result may serve. "
    "An order that still waits can be rejected."
)


def next_step(text: str, transcript: Transcript, today: date | None = None) -> Step:
    """The next tool for this command, or the answer. The models' names come first: requests are read against them."""
    if known_models(transcript) is None:
        return Act("list_models")
    return carried_out(understood(text, transcript, today), transcript.observed[1:])


def known_models(transcript: Transcript) -> list[str] | None:
    """The registered models, None before the tool has named them."""
    if not transcript.observed:
        return None
    return [line.name for line in Models.model_validate_json(transcript.observed[0].content).models]


def understood(text: str, transcript: Transcript, today: date | None) -> list[Request]:
    """The requests that the rules find in a command."""
    return _told_once(parse(text, known_models(transcript) or [], _earlier(transcript), today))


def carried_out(requests: list[Request], observed: Sequence[Observation]) -> Step:
    """The next call of these requests, or the answer when all have been observed."""
    calls = [request for request in requests if not request.question and request.tool != CANCEL_RUN]
    return _next_call(calls, list(observed)) or Say(_answer(requests, observed))


def _told_once(requests: list[Request]) -> list[Request]:
    """The explanation of a model ends with its status, so that the status is not told a second time."""
    explained = {item.arguments.get("model") for item in requests if item.tool == "explain_decline" and not item.question}
    return [item for item in requests if item.tool != "model_status" or item.arguments.get("model") not in explained]


def _earlier(transcript: Transcript) -> list[tuple[str, str]]:
    """Texts and replies of the thread; the service's messages carry the text inside their JSON."""
    pairs = []
    for message, reply in transcript.earlier:
        try:
            pairs.append((str(json.loads(message).get("text", "")), reply))
        except (ValueError, AttributeError):
            continue
    return pairs


def _next_call(calls: Sequence[Request], observed: list[Observation]) -> Act | None:
    """The first call that has not been observed yet; a remedy without a strategy looks at the options first."""
    left = list(observed)
    for call in calls:
        if call.tool == "order_remedy" and "remedy" not in call.arguments:
            options = _take(left, "remedy_options")
            if options is None:
                return Act("remedy_options", {"model": call.arguments["model"]})
            call = Request(call.tool, call.arguments | {"remedy": _suggested(options)})  # noqa: PLW2901 - the call with its last slot
        if _take(left, call.tool) is None:
            return Act(call.tool, call.arguments | _reason(call))
    return None


def _take(observed: list[Observation], tool: str) -> Observation | None:
    found = next((item for item in observed if item.tool == tool), None)
    if found is not None:
        observed.remove(found)
    return found


def _suggested(observation: Observation) -> str:
    try:
        return RemedyOptions.model_validate_json(observation.content).suggestion or Remedy.FULL
    except ValueError:
        return Remedy.PARTIAL


def _reason(call: Request) -> dict[str, str]:
    spec = BY_NAME[call.tool]
    return {"reason": "Ordered in the chat."} if spec.orders and "reason" in spec.takes.model_fields else {}


def _answer(requests: Sequence[Request], observed: Sequence[Observation]) -> str:
    if not requests:
        return NOTHING_UNDERSTOOD
    implied = any(request.tool == "order_remedy" for request in requests) and not any(
        request.tool == "remedy_options" for request in requests
    )
    told = [_say(item) for item in observed if not (implied and item.tool == "remedy_options")]
    told += [CANNOT_CANCEL for request in requests if request.tool == CANCEL_RUN]
    told += [request.question for request in requests if request.question]
    return "\n\n".join(text for text in told if text) or PASSED_ON


def _say(observation: Observation) -> str:
    for kind in (BY_NAME[observation.tool].answers, Problem):
        answer = _as(kind, observation.content)
        if answer is not None:
            return answer.say()
    return ""


def _as(kind: type[Answer], content: str) -> Answer | None:
    try:
        return kind.model_validate_json(content)
    except ValueError:
        return None
