"""The join's consumer as a process that can be killed: `python -m join_bench.consumer '{"url": …}'`."""

import asyncio
import json
import logging
import sys
from pathlib import Path

from services.ground_truth.app import CONSUMER
from services.ground_truth.handlers import Join
from services.runtime.process import run
from services.runtime.service import Service

from .ours import SETTINGS, make_context


def main() -> int:
    """Run until a signal comes."""
    logging.basicConfig(level=logging.WARNING)
    job = json.loads(sys.argv[1])
    context = make_context(job["url"], job["bootstrap"], job["group"], Path(job["folder"]))
    return asyncio.run(run([Service(CONSUMER, consumers=(Join(SETTINGS),))], context))


if __name__ == "__main__":
    sys.exit(main())
