"""The DICOM service of a context, listening for as long as a test wants."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from listeners.dicom.app import build
from services.runtime.clock import SystemClock
from services.runtime.service import Context, StopSignal


@contextmanager
def listening(context: Context, number: int = 0) -> Iterator[int]:
    """Run the service in a thread; gives the port it listens on."""
    dicom = context.settings.dicom.model_copy(update={"host": "127.0.0.1", "port": number, "min_free_bytes": 0})
    settings = context.settings.model_copy(update={"dicom": dicom})
    own = replace(context, settings=settings, clock=SystemClock())
    loop, stop, ready = asyncio.new_event_loop(), StopSignal(), settings.state_dir / "run" / "dicom.json"
    ready.unlink(missing_ok=True)

    async def serve() -> None:
        await asyncio.gather(*(worker.run(stop) for worker in build(own).workers if worker.name.startswith("dicom")))

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        for _ in range(400):
            if ready.exists() or not thread.is_alive():
                break
            time.sleep(0.05)
        yield int(json.loads(ready.read_text())["port"])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
