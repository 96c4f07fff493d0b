"""A planner for a language model that is too small, or served too plainly, to call tools by itself: it chooses from a list.

The rules read a command first. What they do not understand is put to the model, which answers under a JSON schema which tool is
meant. Models, days, numbers and settings are read from the person's own words by the same code as for the rules, and the answer is
worded by code, so that neither a name nor a figure is the language model's. An order for which the rules' reading of the words does
not ask waits for a clear yes in any case (`agents.settlement`).
"""

import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import BaseModel, ConfigDict, Field

from agents.planner import commands, policy
from agents.planner.grammar import BY_TOOL
from agents.planner.language import Request, chosen, pieces
from agents.planner.llm import RulePlanner, spoken, transcript_of
from agents.planner.transcript import Act, Step, Transcript
from agents.tools.catalogue import BY_NAME

NONE: Final = "none"
MOST: Final = 4
"""Requests of one message that are chosen for."""
_MEANINGS: Final[dict[str, str]] = {
    "model_status": "how a model is doing now, its accuracy, is it ok",
    "metric_history": "trend of a model over time, over the last evaluations, since a day",
    "compare_versions": "compare two versions of a model",
    "explain_decline": "why a model got worse, what happened to it",
    "drift_warnings": "did the incoming images or data change",
    "list_models": "which models there are",
    "list_orders": "which orders there are, wait or were given",
    "list_reports": "which reports have been written",
    "list_evaluations": "which evaluations were made",
    "replay_evaluation": "evaluate, test or score a model again on cases",
    "remedy_options": "which repairs are possible",
    "order_report": "write a new report on a model",
    "order_label_request": "ask radiologists for labels or annotations",
    "order_remedy": "retrain, fine-tune, recalibrate or repair a model",
    "order_rollback": "bring an earlier version back",
    "order_stop_serving": "stop a model, take it offline",
    "order_resume_serving": "put a stopped model online again",
    "approve_order": "approve an order",
    "reject_order": "reject an order",
    "help": "what the assistant can do",
}
MEANINGS: Final[dict[str, str]] = {
    name: _MEANINGS.get(name, spec.description) for name, spec in BY_NAME.items() if name in BY_TOOL
} | {NONE: "anything else, or only thinking aloud, or it is told not to do something"}
"""What the model reads of each tool: few words, because a small model on a CPU reads some ten tokens a second."""
_EXAMPLES: Final = (
    ("is the spine model still fine?", "model_status"),
    ("the spine net deserves to be trained again", "order_remedy"),
    ("if it gets worse we might stop spine_ct", NONE),
    ("what is for lunch?", NONE),
)
_FENCED: Final = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    tool: str
    words: str = ""


class _Choices(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    requests: tuple[_Choice, ...] = Field(max_length=MOST)


class ChoicePlanner(RulePlanner):
    """The rules, and `endpoint` for the commands that they do not understand; one run's planner.

    With `rules_first` off the model chooses for every command (for measuring what it can do alone).
    """

    _endpoint: FunctionCallingLLM = PrivateAttr()
    _rules_first: bool = PrivateAttr()
    _requests: list[Request] | None = PrivateAttr(default=None)
    _asked: bool = PrivateAttr(default=False)

    def __init__(self, endpoint: FunctionCallingLLM, *, rules_first: bool = True) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._rules_first = rules_first

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised form."""
        return "ReclaimChoicePlanner"

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The next step; one request to the endpoint a run at most. Raises what the endpoint raises, ValueError for its rubbish."""
        transcript = transcript_of(messages)
        said = policy.command_of(transcript)
        step = policy.plan(transcript) if said is None else await self._next(*said, transcript)
        return ChatResponse(message=spoken(policy.reached(step, kwargs.get("tools", ())), messages))

    async def _next(self, text: str, today: date | None, transcript: Transcript) -> Step:
        known = commands.known_models(transcript)
        if known is None:
            return Act("list_models")
        if self._requests is None:
            self._requests = await self._read(text, today, transcript, known)
        return commands.carried_out(self._requests, transcript.observed[1:])

    async def _read(self, text: str, today: date | None, transcript: Transcript, known: Sequence[str]) -> list[Request]:
        understood = commands.understood(text, transcript, today) if self._rules_first else []
        if understood:
            return understood
        self._asked = True
        parts = min(MOST, max(1, len(pieces(text))))
        answer = await self._endpoint.achat(_messages(text, parts), response_format=_format(parts))
        return requests_of(answer.message.content or "", text, known, today)

    @property
    def asked(self) -> bool:
        """Whether the endpoint was needed."""
        return self._asked

    async def aclose(self) -> None:
        """Let go of the endpoint's connections."""
        closing = getattr(self._endpoint, "aclose", None)
        if closing is not None:
            await closing()


def requests_of(answer: str, text: str, known: Sequence[str], today: date | None) -> list[Request]:
    """The requests that an answer chooses, with slots from the person's words. ValueError where it is no choice."""
    fenced = _FENCED.search(answer)
    choices = _Choices.model_validate_json(fenced[1] if fenced else answer).requests
    kept = [choice for choice in choices if choice.tool in MEANINGS and choice.tool != NONE]
    single = len(kept) == 1
    worded = [(each.tool, _words(each, text, single=single)) for each in kept]
    found = [request for tool, words in worded for request in chosen(tool, words, text, known, today)]
    return list({(item.tool, str(item.arguments), item.question): item for item in found}.values())


def _words(choice: _Choice, text: str, *, single: bool) -> str:
    """The words that a choice was made for: those it quotes where they are the person's, else the whole text."""
    quoted = choice.words.strip()
    return quoted if quoted and quoted.casefold() in text.casefold() and not single else text


def _format(parts: int) -> dict[str, Any]:
    """The schema of the answer; with several parts each request quotes the words that it is made for."""
    fields: dict[str, Any] = {"tool": {"enum": list(MEANINGS)}}
    fields |= {"words": {"type": "string", "maxLength": 160}} if parts > 1 else {}
    item = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    listed = {"type": "array", "minItems": 1, "maxItems": parts, "items": item}
    schema = {"type": "object", "properties": {"requests": listed}, "required": ["requests"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}


def _messages(text: str, parts: int) -> list[ChatMessage]:
    """Instructions and examples first and always alike, so that a server reads them once and keeps them."""
    listed = "\n".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
    told = f"Choose what a person at a hospital asks for. Tools:\n{listed}\n"
    told += 'Answer with JSON: {"requests": [{"tool": …}]}'
    messages = [ChatMessage(role=MessageRole.SYSTEM, content=told)]
    for said, tool in _EXAMPLES:
        messages.append(ChatMessage(role=MessageRole.USER, content=said))
        messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=json.dumps({"requests": [{"tool": tool}]})))
    several = ' Give each request with its "words".' if parts > 1 else ""
    return [*messages, ChatMessage(role=MessageRole.USER, content=f"{text}{several}")]
