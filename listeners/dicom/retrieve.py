"""C-GET and C-MOVE SCU (PS3.4 Annex C): studies of a PACS into our archive.

Instances of a C-GET go through `Reception`, those of a C-MOVE come to our listener: either way the guarantees are those of
C-STORE, and the PACS hears success only for what is durable.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_role, evt
from pynetdicom.presentation import PresentationContext, build_context

from listeners.dicom import query
from listeners.dicom.answers import FAILED, Answer
from listeners.dicom.presentation import ALL_CLASSES, TRANSFER_SYNTAXES, USUAL_CLASSES
from listeners.dicom.query import StudyMatch
from listeners.dicom.reception import Reception, StoreRequest
from services.runtime.scu import Peer, PeerAcceptsNothing, PeerLost, Timeouts, association, status_words

STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
TIMEOUTS: Final = Timeouts(connect_s=10.0, answer_s=300.0)
MOST_CONTEXTS: Final = 127
UNCOMPRESSED: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
OFTEN_KEPT: Final = (*(f"1.2.840.10008.1.2.4.{number}" for number in (70, 90, 50, 80, 91, 81, 51)), "1.2.840.10008.1.2.5")
"""What PACS compress to: proposed first, where there is not room for all."""
_PENDING: Final = 0xFF00
_WARNING: Final = 0xB000

ADVICE: Final[dict[int, str]] = {
    0xA701: "the PACS cannot count the matches: ask it later",
    0xA702: "the PACS could not send: is our listener reachable from there, and its AE title at the right address?",
    0xA801: "the PACS does not know us as a destination: enter our AE title, host and port there, or use --method get",
}

Progress = Callable[[int, int | None], None]


@dataclass
class Retrieved:
    """What came of one study. Counts are the PACS's sub-operations; `answers` are our own, for C-GET only."""

    method: str
    expected: int | None
    completed: int = 0
    failed: int = 0
    warnings: int = 0
    fault: str = ""
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        """Whether the PACS sent everything it has and we stored all of it."""
        enough = self.expected is None or self.completed + self.warnings >= self.expected
        return not self.fault and not self.failed and enough

    def text(self) -> str:
        """One line for a terminal, without identities."""
        total = "?" if self.expected is None else str(self.expected)
        parts = [f"{self.completed + self.warnings} of {total} instances ({self.method})"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        parts += [
            f"{count} refused by us: {answer}" for answer, count in sorted(self.answers.items()) if not answer.startswith("0000")
        ]
        return "; ".join([*parts, self.fault] if self.fault else parts)


def get_study(
    peer: Peer,
    study: StudyMatch,
    reception: Reception,
    *,
    calling_ae: str,
    sop_classes: Iterable[str],
    on_progress: Progress | None = None,
    timeouts: Timeouts = TIMEOUTS,
) -> Retrieved:
    """Fetch a study by C-GET over one association. `sop_classes` are those that we store.

    Raises PeerAway, PeerBusy, and PeerRefuses or PeerAcceptsNothing when the PACS offers no C-GET; what fails later is part
    of the outcome.
    """
    outcome = Retrieved("C-GET", study.instances)
    wanted = [uid for uid in sop_classes if (uid in study.sop_classes if study.sop_classes else _is_usual(uid))]
    if not wanted:
        outcome.fault = "the study holds only types that this site does not store (RECLAIM_DICOM_SOP_CLASSES, _ONLY_SOP_CLASSES)"
        return outcome
    wanted = wanted[:MOST_CONTEXTS]
    handlers = [(evt.EVT_C_STORE, _on_store, [reception, peer, outcome])]
    roles = [build_role(uid, scp_role=True) for uid in wanted]
    contexts = [build_context(STUDY_ROOT_GET), *storage_contexts(wanted)]
    with association(peer, contexts, calling_ae=calling_ae, timeouts=timeouts, roles=roles, handlers=handlers) as opened:
        if not any(each.abstract_syntax == STUDY_ROOT_GET for each in opened.accepted_contexts):
            raise PeerAcceptsNothing(f"{peer.address} does not offer C-GET")
        _follow(opened.send_c_get(_identifier(study), STUDY_ROOT_GET), outcome, on_progress, peer)
    return outcome


def move_study(
    peer: Peer,
    study: StudyMatch,
    *,
    calling_ae: str,
    destination: str,
    on_progress: Progress | None = None,
    timeouts: Timeouts = TIMEOUTS,
) -> Retrieved:
    """Have the PACS send a study to the AE title `destination` (our listener, which must be running); raises as `get_study`."""
    outcome = Retrieved("C-MOVE", study.instances)
    with association(peer, [build_context(STUDY_ROOT_MOVE)], calling_ae=calling_ae, timeouts=timeouts) as opened:
        _follow(opened.send_c_move(_identifier(study), destination, STUDY_ROOT_MOVE), outcome, on_progress, peer)
    return outcome


def storage_contexts(sop_classes: Sequence[str]) -> list[PresentationContext]:
    """Contexts for what a PACS may send: per class one for uncompressed and one per compressed transfer syntax, 127 in all.

    One transfer syntax a context, because an acceptor takes one of each, and only the right one spares it re-encoding.
    """
    compressed = [uid for uid in dict.fromkeys((*OFTEN_KEPT, *TRANSFER_SYNTAXES)) if uid not in UNCOMPRESSED]
    each = max(MOST_CONTEXTS // len(sop_classes) - 1, 0)
    contexts = [build_context(uid, list(UNCOMPRESSED)) for uid in sop_classes]
    contexts += [build_context(uid, syntax) for syntax in compressed[:each] for uid in sop_classes]
    return contexts


def _is_usual(sop_class_uid: str) -> bool:
    """Whether to ask for it where the PACS does not tell what the study holds: there is no room for all."""
    return sop_class_uid in USUAL_CLASSES or sop_class_uid not in ALL_CLASSES


def _identifier(study: StudyMatch) -> Dataset:
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = study.study_uid
    return keys


def _follow(
    responses: Iterator[tuple[Dataset, Dataset | None]], outcome: Retrieved, on_progress: Progress | None, peer: Peer
) -> None:
    """Read the responses to their end; counts are the last ones that the PACS gave."""
    try:
        for status, _ in responses:
            if "Status" not in status:
                outcome.fault = f"{peer.address} ended the association, or did not answer in time"
                return
            outcome.completed = int(status.get("NumberOfCompletedSuboperations") or outcome.completed)
            outcome.failed = int(status.get("NumberOfFailedSuboperations") or outcome.failed)
            outcome.warnings = int(status.get("NumberOfWarningSuboperations") or outcome.warnings)
            if on_progress:
                on_progress(outcome.completed + outcome.failed + outcome.warnings, outcome.expected)
            if status.Status not in (_PENDING, _WARNING, 0x0000):
                outcome.fault = f"the PACS answered {status_words(status)}: {advice(status.Status)}"
    except (RuntimeError, ValueError):
        raise PeerLost(f"{peer.address} ended the association before {outcome.method} could be sent") from None


def advice(status: int) -> str:
    """What to do about a failure of a retrieval."""
    return ADVICE.get(status) or query.advice(status)


def _on_store(event: Any, reception: Reception, peer: Peer, outcome: Retrieved) -> Dataset:
    request, context = event.request, event.context
    try:
        answer = reception.receive(
            StoreRequest(
                context_sop_class_uid=str(context.abstract_syntax),
                affected_sop_class_uid=str(request.AffectedSOPClassUID or ""),
                affected_sop_instance_uid=str(request.AffectedSOPInstanceUID or ""),
                transfer_syntax_uid=str(context.transfer_syntax),
                dataset=request.DataSet.getvalue() if request.DataSet else b"",
                calling_ae=peer.ae_title,
            )
        )
    except Exception:  # noqa: BLE001 - whatever it is, the PACS must not hear success
        answer = FAILED
    outcome.answers[f"{answer.status:04X} {answer.comment}".strip()] += 1
    return _response(answer)


def _response(answer: Answer) -> Dataset:
    response = Dataset()
    response.Status = answer.status
    if not answer.is_success:
        response.ErrorComment = answer.comment
    return response
