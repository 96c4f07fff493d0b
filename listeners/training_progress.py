"""What is kept and told of a training that a person asked for: its checkpoints, and one event for each epoch on the bus."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from models.training_settings import EpochRecord
from schemas.events import MaintenanceRun
from schemas.topics import RUN
from schemas.vocabulary import JobState, Remedy
from services.remediation.ids import natural_id
from services.runtime import registry
from services.runtime.errors import Transient
from services.runtime.service import Context

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """One training, known by what it was asked for; used as a context, whose failing end is announced too.

    Its checkpoints outlive a killed process, and go once the version is registered.
    """

    context: Context
    model: str
    epochs: int
    run_id: str

    @classmethod
    def of(cls, context: Context, model: str, epochs: int, facts: tuple[str, ...]) -> Self:
        """The same for the same facts, as long as the model has no further version."""
        with context.database.read() as session:
            number = registry.next_version(session, model)
        return cls(context, model, epochs, natural_id("training", model, str(number), *facts))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self._announce("failed", f"The training failed: {type(error).__name__}.", JobState.FAILED)

    @property
    def folder(self) -> Path:
        """Where the checkpoints lie."""
        return self.context.settings.state_dir / "runs" / self.run_id

    def epochs_done(self) -> int:
        """How far an earlier process came with the same training."""
        return max((int(path.name.removeprefix("epoch-")) for path in self.folder.glob("epoch-*")), default=0)

    def told(self, on_epoch: Callable[[EpochRecord], None]) -> Callable[[EpochRecord], None]:
        """The same hook, with an event for each epoch besides; one that is told again is the same event."""

        def tell(record: EpochRecord) -> None:
            known = record.model_dump(exclude={"epoch", "seconds"})
            metrics = {name: round(float(value), 6) for name, value in known.items() if value is not None}
            words = f"training: epoch {record.epoch} of {self.epochs}"
            self._announce(f"epoch {record.epoch}", words, JobState.RUNNING, record.epoch, metrics)
            on_epoch(record)

        return tell

    def succeeded(self, version: int) -> None:
        """The version is registered."""
        self._announce("end", f"Registered as version {version}.", JobState.SUCCEEDED)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _announce(
        self, moment: str, words: str, state: JobState, epoch: int | None = None, metrics: dict[str, float] | None = None
    ) -> None:
        """A training does not end because the database is away for a moment."""
        event = MaintenanceRun(
            run_id=self.run_id,
            order_id="",
            model=self.model,
            remedy=Remedy.NONE,
            state=state,
            epoch=epoch,
            epochs=self.epochs,
            metrics=metrics or {},
            message=words,
        )
        try:
            with self.context.database.transaction() as tx:
                tx.emit(RUN, event, event_id=natural_id("run", self.run_id, moment))
        except Transient as error:
            logger.warning("the progress of the training of %s was not announced: %s", self.model, error)
