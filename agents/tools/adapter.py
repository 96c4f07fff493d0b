"""Typed tools as LlamaIndex sees them: arguments validated, answers as JSON, our own faults kept instead of swallowed."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from llama_index.core.tools import FunctionTool, ToolMetadata
from pydantic import BaseModel, ValidationError

from agents.telemetry import tool_span
from agents.tools.answers import Answer, Problem
from agents.tools.catalogue import CATALOGUE, ToolSpec
from agents.tools.desk import Desk


def tools_of(agent: str, desk: Desk) -> list[FunctionTool]:
    """The tools of one agent, bound to a run's desk."""
    return [_tool(spec, desk) for spec in CATALOGUE if spec.belongs_to(agent)]


def _tool(spec: ToolSpec, desk: Desk) -> FunctionTool:
    described = _Description(name=spec.name, description=spec.description, fn_schema=spec.takes)
    return FunctionTool.from_defaults(async_fn=_bound(spec, desk), tool_metadata=described)


class _Description(ToolMetadata):
    """What a model is told of a tool; the schema of its arguments is made once for all runs."""

    def get_parameters_dict(self) -> dict[str, Any]:
        """The arguments as JSON schema. The caller may add to the outermost level, which is a copy."""
        return dict(_parameters(self.fn_schema))


@cache
def _parameters(takes: type[BaseModel]) -> dict[str, Any]:
    return ToolMetadata("", fn_schema=takes).get_parameters_dict()


def _bound(spec: ToolSpec, desk: Desk) -> Callable[..., Awaitable[str]]:
    async def call(**kwargs: Any) -> str:
        with tool_span(spec.name, kwargs):
            return use(spec, desk, kwargs).model_dump_json()

    return call


def use(spec: ToolSpec, desk: Desk, kwargs: dict[str, Any]) -> Answer:
    """Call a tool: wrong arguments are answered, a fault of ours is kept on the desk and raised.

    LlamaIndex turns what a tool raises into text for the model and goes on; the desk is how the handler still learns of it.
    """
    try:
        args = spec.takes.model_validate(kwargs)
    except ValidationError as error:
        return Problem(error=_faults(error))
    try:
        return spec.run(desk, args)
    except Exception as error:
        desk.fault = desk.fault or error
        raise


def _faults(error: ValidationError) -> str:
    faults = (f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg']}" for item in error.errors(include_input=False))
    return f"The arguments are wrong: {'; '.join(faults)}."
