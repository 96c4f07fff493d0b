"""Operations of an association that are neither C-STORE nor C-ECHO: what a handler is given, and what it answers.

The association decodes the message, calls the handler of its (abstract syntax, Command Field) and encodes the reply. An
operation without handler is answered 0211 (unrecognized operation, PS3.7 Annex C).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from pydicom.dataset import Dataset

N_EVENT_REPORT_RQ: Final = 0x0100
N_GET_RQ: Final = 0x0110
N_SET_RQ: Final = 0x0120
N_ACTION_RQ: Final = 0x0130
N_CREATE_RQ: Final = 0x0140
N_DELETE_RQ: Final = 0x0150


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
