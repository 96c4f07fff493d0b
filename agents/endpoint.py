"""Any OpenAI-compatible endpoint, with every request counted and traced."""

import json
import re
import ssl
import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import httpx
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
from openai import DefaultAsyncHttpxClient
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.telemetry import chat_span

_WRITTEN: Final = re.compile(r"^(?:```(?:json)?|<tool_call>)?\s*(\{.*\})\s*(?:```|</tool_call>)?$", re.DOTALL)
"""A tool call that a model wrote as text: bare, fenced, or between the tags of its training."""
_AS_THEY_ARE: Final = ("tools", "tool_choice", "parallel_tool_calls")
"""What goes into a request past the client's own conversion, which costs some milliseconds for twenty tools."""


class MeteredEndpoint(OpenAILike):  # type: ignore[misc]
    """LlamaIndex's client; the agents ask it through `achat` alone, because nothing is streamed.

    `mends`: a tool call that was written as text counts as one, where its tool is among those offered.
    """

    mends: bool = False
    _connections: httpx.AsyncClient = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        # The certificates are read once for all runs: that takes longer than the rest of a client's making.
        connections = DefaultAsyncHttpxClient(verify=_certificates())
        super().__init__(**kwargs, async_http_client=connections)
        self._connections = connections

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One request and its answer."""
        offered = {str(tool["function"]["name"]) for tool in kwargs.get("tools") or ()}
        past = {name: kwargs.pop(name) for name in _AS_THEY_ARE if kwargs.get(name) is not None}
        with chat_span(str(self.model)) as answered:
            response: ChatResponse = await super().achat(messages, **kwargs, **({"extra_body": past} if past else {}))
            answered(*tokens_of(response.raw), str(response.message.content or ""))
        return with_written_call(response, offered) if self.mends else response

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._connections.aclose()


class _Written(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


def with_written_call(response: ChatResponse, offered: set[str]) -> ChatResponse:
    """The answer with a tool call in place of the text that is one; any other answer as it is."""
    text = (response.message.content or "").strip()
    found = _WRITTEN.match(text)
    if found is None or any(isinstance(block, ToolCallBlock) for block in response.message.blocks):
        return response
    try:
        call = _Written.model_validate_json(found[1])
    except ValidationError:
        return response
    if call.name not in offered:
        return response
    block = ToolCallBlock(
        tool_call_id=f"written-{uuid.uuid4().hex[:12]}", tool_name=call.name, tool_kwargs=json.dumps(call.arguments)
    )
    return response.model_copy(update={"message": ChatMessage(role=MessageRole.ASSISTANT, blocks=[block])})


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def tokens_of(raw: Any) -> tuple[int, int]:
    """Input and output tokens as the endpoint counts them; zeros where it does not say."""
    usage = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
    return _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")


def _number(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
    return value if isinstance(value, int) and value > 0 else 0
