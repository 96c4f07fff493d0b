"""One supervised child process: its start, its lines in the common terminal, its restarts, its end."""

import asyncio
import contextlib
import io
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

from rich.console import Console
from rich.text import Text

from services.runtime.clock import Clock
from services.runtime.health import EX_CONFIG
from services.runtime.parenthood import die_with_parent
from services.runtime.privacy import UMASK

logger = logging.getLogger(__name__)
COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")
CRASHES_A_MINUTE = 5
RESTART_FIRST_S = 0.5
RESTART_MAX_S = 15.0
LEFT_DOWN_S = 300.0
"""After so long one that crashed too often is tried again: what was wrong (a full disk, a broken version) may be mended."""
REFUSALS = 3
"""One that ends so often in a row because its settings are at fault is not tried again: they are read when `reclaim up` starts."""
LINE_BYTES = 1_048_576


class Terminal(io.TextIOBase):
    """Standard output. What it does not take (a full disk, a closed terminal or pipe) is lost: no child must wait for it."""

    def write(self, text: str) -> int:
        """Print what can be printed."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        """Have it shown now."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()

    def isatty(self) -> bool:
        """Whether colours are of use."""
        return sys.stdout.isatty()


console = Console(file=cast("IO[str]", Terminal()), highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class ChildSpec:
    """A child to run. With `uses_bus` it is stopped and started again together with an embedded broker."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    uses_bus: bool = True


class Child:
    """A child process that is started again when it ends by itself; later, where it does so too often.

    One whose settings are at fault stays down.
    """

    def __init__(self, spec: ChildSpec, number: int, width: int, clock: Clock) -> None:
        self.spec = spec
        self.given_up = False
        self._prefix = f"{spec.name:>{width}} │ "
        self._colour = COLOURS[number % len(COLOURS)]
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._crashes: deque[float] = deque()
        self._refusals = 0
        self._start_again_at: float | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 while it is down."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def misconfigured(self) -> bool:
        """Whether it is left down because it cannot work with its settings."""
        return self._refusals >= REFUSALS

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start it. It gets our environment, then `environment`, then its own."""
        self._start_again_at, self.given_up = None, False
        self._process = await asyncio.create_subprocess_exec(
            *self.spec.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, **self.spec.env},
            limit=LINE_BYTES,
            start_new_session=True,  # Ctrl+C reaches the supervisor alone, which then stops children in order
            umask=UMASK,
            preexec_fn=die_with_parent,
        )
        self._pump = asyncio.create_task(self._print_lines(self._process))

    async def look_after(self, environment: Mapping[str, str]) -> bool:
        """Start it again when it is due; True when something changed."""
        if self.pid:
            return False
        now = self._clock.monotonic()
        if self._start_again_at is None:
            self._note_crash(now)
            return True
        if now < self._start_again_at:
            return False
        await self.start(environment)
        return True

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace time."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                logger.warning("%s does not end; it is killed", self.spec.name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=1.0)
            self._pump.cancel()
        self._process = None
        self._start_again_at = self._clock.monotonic()

    def _note_crash(self, now: float) -> None:
        code = self._process.returncode if self._process else None
        self._refusals = self._refusals + 1 if code == EX_CONFIG else 0
        if self.misconfigured:
            self.given_up, self._start_again_at = True, math.inf
            logger.critical(
                "%s does not start with its settings (exit code %d, %d times) and is not tried again; everything else goes on. "
                "Its own last lines name the setting: put it right, and start `reclaim up` again",
                self.spec.name,
                EX_CONFIG,
                self._refusals,
            )
            return
        self._crashes.append(now)
        while self._crashes and self._crashes[0] < now - 60.0:
            self._crashes.popleft()
        if len(self._crashes) > CRASHES_A_MINUTE:
            self.given_up, self._start_again_at = True, now + LEFT_DOWN_S
            logger.critical(
                "%s ended %d times within a minute (last exit code %s) and is left down; everything else goes on. "
                "Its own last lines say why; it is tried again every %.0f minutes",
                self.spec.name,
                len(self._crashes),
                code,
                LEFT_DOWN_S / 60,
            )
            return
        delay = min(RESTART_MAX_S, RESTART_FIRST_S * 2 ** (len(self._crashes) - 1))
        self._start_again_at = now + delay
        logger.error("%s ended with exit code %s; it is started again in %.1f s", self.spec.name, code, delay)

    async def _print_lines(self, process: asyncio.subprocess.Process) -> None:
        stream = process.stdout
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the limit: asyncio has dropped its beginning
                line = b"(a line of more than a megabyte)"
            if not line:
                return
            text = Text(self._prefix, style=self._colour)
            text.append_text(Text.from_ansi(line.decode(errors="replace").rstrip()))
            console.print(text)
