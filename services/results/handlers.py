"""Champions' predictions in, jobs out. Without a destination everything passes in silence."""

from typing import ClassVar

from schemas.topics import PREDICTION, Topic
from services.results import jobs
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.transaction import Transaction


class Results(BatchConsumer[None]):
    """Enters a job for every prediction of a version in service."""

    name: ClassVar[str] = jobs.CONSUMER
    topics: ClassVar[tuple[Topic, ...]] = (PREDICTION,)

    def __init__(self, destination: str) -> None:
        self._destination = destination

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:  # noqa: ARG002
        """Enter the jobs; a challenger's shadow score is nobody's result."""
        if not self._destination:
            return
        for event in batch:
            if event.data.serving:
                jobs.enqueue(tx, event, self._destination)
