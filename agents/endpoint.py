"""Any OpenAI-compatible endpoint, with every request counted and traced."""

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]

from agents.telemetry import chat_span


class MeteredEndpoint(OpenAILike):  # type: ignore[misc]
    """LlamaIndex's client; the agents ask it through `achat` alone, because nothing is streamed."""

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One request and its answer."""
        with chat_span(str(self.model)) as answered:
            response: ChatResponse = await super().achat(messages, **kwargs)
            answered(*tokens_of(response.raw), str(response.message.content or ""))
        return response


def tokens_of(raw: Any) -> tuple[int, int]:
    """Input and output tokens as the endpoint counts them; zeros where it does not say."""
    usage = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
    return _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")


def _number(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
    return value if isinstance(value, int) and value > 0 else 0
