"""Waiting in tests for what other processes do."""

import asyncio
from collections.abc import Callable
from typing import Any


async def until(what: Callable[[], Any]) -> Any:
    """What `what` returns once that is true; fails after half a minute."""
    for _ in range(300):
        if found := what():
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("nothing came")
