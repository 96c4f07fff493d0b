"""The rule planner as a LlamaIndex model, so that the very same workflow runs with no language model at all."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from agents.planner.policy import next_step
from agents.planner.transcript import Act, Observation, Step, Transcript


class RulePlanner(FunctionCallingLLM):
    """Answers each turn with the policy's next step: one tool call, or text."""

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised form."""
        return "ReclaimRulePlanner"

    @property
    def metadata(self) -> LLMMetadata:
        """A model with tools and a context that no run fills."""
        return LLMMetadata(
            context_window=1_000_000, num_output=8_000, is_chat_model=True, is_function_calling_model=True, model_name="rules"
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The next step for a conversation; `tools` are the names that may be called."""
        return ChatResponse(message=_answer(messages, kwargs.get("tools", ())))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`; the policy never waits for anything."""
        return ChatResponse(message=_answer(messages, kwargs.get("tools", ())))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """One chunk that is the whole answer."""
        message = _answer(messages, kwargs.get("tools", ()))
        yield ChatResponse(message=message, delta=message.content or "")

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """One chunk that is the whole answer."""
        message = _answer(messages, kwargs.get("tools", ()))

        async def chunks() -> ChatResponseAsyncGen:
            yield ChatResponse(message=message, delta=message.content or "")

        return chunks()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """The next step for a single message."""
        return CompletionResponse(text=_answer([ChatMessage(role="user", content=prompt)], ()).content or "")

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """As `complete`."""
        return CompletionResponse(text=_answer([ChatMessage(role="user", content=prompt)], ()).content or "")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        """One chunk that is the whole answer."""
        text = _answer([ChatMessage(role="user", content=prompt)], ()).content or ""
        yield CompletionResponse(text=text, delta=text)

    @llm_completion_callback()
    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> CompletionResponseAsyncGen:
        """One chunk that is the whole answer."""
        text = _answer([ChatMessage(role="user", content=prompt)], ()).content or ""

        async def chunks() -> CompletionResponseAsyncGen:
            yield CompletionResponse(text=text, delta=text)

        return chunks()

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: ARG002
        allow_parallel_tool_calls: bool = False,  # noqa: ARG002
        tool_required: bool = False,  # noqa: ARG002
        **_kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(user_msg if isinstance(user_msg, ChatMessage) else ChatMessage(role="user", content=user_msg))
        return {"messages": messages, "tools": [tool.metadata.get_name() for tool in tools]}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **_kwargs: Any
    ) -> list[ToolSelection]:
        """The tool call of an answer, if it is one."""
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            raise ValueError("the answer holds no tool call")
        return [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=_arguments(call)) for call in calls
        ]


def _answer(messages: Sequence[ChatMessage], tools: Sequence[str]) -> ChatMessage:
    return spoken(next_step(transcript_of(messages), tools), messages)


def spoken(step: Step, messages: Sequence[ChatMessage]) -> ChatMessage:
    """A step as the answer of a language model: one tool call, or text."""
    if isinstance(step, Act):
        number = sum(isinstance(block, ToolCallBlock) for message in messages for block in message.blocks)
        call = ToolCallBlock(tool_call_id=f"call-{number + 1}", tool_name=step.tool, tool_kwargs=step.arguments)
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[call])
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=step.text)])


def transcript_of(messages: Sequence[ChatMessage]) -> Transcript:
    """The conversation as the policy sees it: the last user message opens the run, exchanges before it are the thread's past."""
    users = [at for at, message in enumerate(messages) if message.role == MessageRole.USER]
    last = users[-1] if users else len(messages)
    past = [message for message in messages[:last] if message.role in {MessageRole.USER, MessageRole.ASSISTANT} and message.content]
    earlier = tuple(
        (first.content or "", second.content or "")
        for first, second in pairwise(past)
        if first.role == MessageRole.USER and second.role == MessageRole.ASSISTANT
    )
    message = (messages[last].content or "") if users else ""
    return Transcript(message, earlier, _observations(messages[last + 1 :]))


def _observations(messages: Sequence[ChatMessage]) -> tuple[Observation, ...]:
    calls: dict[str, ToolCallBlock] = {}
    seen: list[Observation] = []
    for message in messages:
        calls |= {block.tool_call_id or "": block for block in message.blocks if isinstance(block, ToolCallBlock)}
        call = calls.get(str(message.additional_kwargs.get("tool_call_id", "")))
        if message.role == MessageRole.TOOL and call is not None and call.tool_name != "handoff":
            seen.append(Observation(call.tool_name, _arguments(call), message.content or ""))
    return tuple(seen)


def _arguments(call: ToolCallBlock) -> dict[str, Any]:
    arguments = json.loads(call.tool_kwargs) if isinstance(call.tool_kwargs, str) else call.tool_kwargs
    return dict(arguments)
