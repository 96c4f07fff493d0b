"""The early warning's consumer: it keeps every prediction, in the order of arrival."""

from typing import Final

from schemas.events import Prediction
from schemas.topics import PREDICTION
from services.drift import repository
from services.drift.repository import Version
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.transaction import Transaction

CONSUMER: Final = "drift"


class Watch(BatchConsumer[None]):
    """Keeps predictions. A worker judges them (`services.drift.measure`), so that statistics never hold up a batch."""

    name = CONSUMER
    topics = (PREDICTION,)
    max_records = 500

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:  # noqa: ARG002
        """Keep the predictions by version; a study that is known already stays as it is."""
        by_version: dict[Version, list[Prediction]] = {}
        for event in batch:
            by_version.setdefault((event.data.model, event.data.version), []).append(event.data)
        for version in sorted(by_version):
            repository.lock_version(tx, version)
            repository.enter(tx, version, by_version[version])
