"""Storage commitment (PS3.4 Annex J): what was asked, what can be committed, and when to try a report again.

Committed is an instance whose file is in the archive, complete, under the SOP class that the request names, and whose UID no
other object claims.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Final

from services.assembly.files import NotPart10Error, layout_of
from services.runtime.backoff import doubled

LONGEST_RETRY_S: Final = 3600.0
MOST_REFERENCES: Final = 100_000


class FailureReason(IntEnum):
    """Failure Reason (0008,1197) of PS3.3 C.14.1.1, as far as it is used here."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


@dataclass(frozen=True, order=True)
class Reference:
    """Referenced SOP Class UID (0008,1150) and Referenced SOP Instance UID (0008,1155)."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Request:
    """A storage commitment request as it came. AE titles are printable ones."""

    transaction_uid: str
    peer_ae: str
    own_ae: str
    references: tuple[Reference, ...]

    @property
    def digest(self) -> str:
        """The same for the same peer and the same references in any order."""
        lines = [self.peer_ae, *sorted(f"{item.sop_class_uid} {item.sop_instance_uid}" for item in set(self.references))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Stored:
    """What the index knows of an instance: its SOP class, its file relative to the archive's root, its data set's size.

    `disputed`: files of other objects that came with its UID. A request names no study, so it may mean any of them.
    """

    sop_class_uid: str
    path: PurePosixPath
    size: int
    disputed: tuple[PurePosixPath, ...] = ()


@dataclass(frozen=True)
class Report:
    """What is said to the peer."""

    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, FailureReason], ...]

    @property
    def lacks_instances(self) -> bool:
        """Whether an instance is not there, which may be on its way."""
        return any(reason is FailureReason.NO_SUCH_OBJECT_INSTANCE for _, reason in self.failed)


def report_on(references: Iterable[Reference], stored: Mapping[str, Stored], root: Path) -> Report:
    """Check every reference against the index and the archive's files."""
    committed: list[Reference] = []
    failed: list[tuple[Reference, FailureReason]] = []
    for item in references:
        reason = _failure(item, stored.get(item.sop_instance_uid), root)
        if reason is None:
            committed.append(item)
        else:
            failed.append((item, reason))
    return Report(tuple(committed), tuple(failed))


def _failure(item: Reference, known: Stored | None, root: Path) -> FailureReason | None:
    if known is None:
        return FailureReason.NO_SUCH_OBJECT_INSTANCE
    if known.sop_class_uid != item.sop_class_uid:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    try:
        layout = layout_of(root / known.path)
    except FileNotFoundError:
        return FailureReason.NO_SUCH_OBJECT_INSTANCE
    except (OSError, NotPart10Error):
        return FailureReason.PROCESSING_FAILURE
    if layout.size - layout.dataset_offset != known.size or any((root / path).exists() for path in known.disputed):
        return FailureReason.PROCESSING_FAILURE
    return None


def next_attempt(now: datetime, attempts: int, first: timedelta) -> datetime:
    """When to try again after that many failures: the pause doubles up to an hour."""
    return now + timedelta(seconds=doubled(attempts - 1, first.total_seconds(), LONGEST_RETRY_S))


def distinct(references: Sequence[Reference]) -> tuple[Reference, ...]:
    """Each reference once, in order."""
    return tuple(dict.fromkeys(references))
