"""Operations of an association that are neither C-STORE nor C-ECHO: what a handler is given, and what it answers.

The association decodes the message, calls the handler of its (abstract syntax, Command Field) and encodes the reply. An
operation without handler is answered 0211 (unrecognized operation, PS3.7 Annex C).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MPPS: Final = "1.2.840.10008.3.1.2.3.3"
"""Modality Performed Procedure Step SOP Class (PS3.4 F.7)."""
PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class (PS3.4 J.3)."""
N_SET_RQ: Final = 0x0120
N_ACTION_RQ: Final = 0x0130
N_CREATE_RQ: Final = 0x0140


@dataclass(frozen=True)
class Peer:
    """Who is at the other end. Titles are as sent without padding, not to be trusted; `address` is the IP address."""

    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True)
class Operation:
    """One decoded request. `command` is group 0000, `dataset` what came with it; values are the sender's, unchecked."""

    command: Dataset
    dataset: Dataset | None
    abstract_syntax: str
    transfer_syntax: str
    peer: Peer


@dataclass(frozen=True)
class Reply:
    """The answer. `elements` are further command elements by keyword, e.g. AffectedSOPInstanceUID, ErrorComment."""

    status: int
    dataset: Dataset | None = None
    elements: Mapping[str, Any] = field(default_factory=dict)


OperationHandler: TypeAlias = Callable[[Operation], Reply]
"""Must not raise; called in the association's thread, which receives nothing else meanwhile."""

Handlers: TypeAlias = Mapping[tuple[str, int], OperationHandler]
"""(abstract syntax UID, Command Field (0000,0100) of the request) to its handler."""


def late(load: Callable[[], Handlers], *keys: tuple[str, int]) -> Handlers:
    """Handlers that the first request loads: they need pydicom and its 45 MB, and many listeners never get such a request."""
    loaded = functools.cache(load)

    def waiting(key: tuple[str, int]) -> OperationHandler:
        return lambda operation: loaded()[key](operation)  # noqa: PLW0108 - not before an operation comes

    return {key: waiting(key) for key in keys}
