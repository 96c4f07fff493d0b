"""C-STORE SCU: pushes a folder of DICOM files as they are stored, without decoding or re-encoding them."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pynetdicom
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE
from pynetdicom.presentation import build_context

from listeners.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from services.assembly.headers import is_valid_uid
from services.runtime.errors import InvalidInput, Transient

MOST_CONTEXTS: Final = 128
RETRY_DELAYS_S: Final = (1.0, 2.0, 5.0, 10.0)
ASSOCIATION_ATTEMPTS: Final = 3
TIMEOUT_S: Final = 60.0
NO_ANSWER: Final = "no answer"
NOT_ACCEPTED: Final = "type not accepted by the receiver"

Progress = Callable[[int, int], None]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Item:
    """A file to send, with its SOP class and transfer syntax."""

    path: Path
    pair: Pair


@dataclass
class SendSummary:
    """What came of each file. Keys of `outcomes` are statuses like `0000` or a reason in words."""

    total: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    comments: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Files that the receiver has acknowledged; a warning status (Bxxx) counts."""
        return sum(count for outcome, count in self.outcomes.items() if outcome == "0000" or outcome.startswith("B0"))

    @property
    def complete(self) -> bool:
        """Whether every DICOM file that was found has been acknowledged."""
        return self.stored == self.total

    def text(self) -> str:
        """The outcome for a terminal."""
        lines = [f"{self.stored} of {self.total} files stored."]
        for outcome, count in sorted(self.outcomes.items()):
            if outcome != "0000":
                comment = self.comments.get(outcome, "")
                lines.append(f"{count} with {outcome}" + (f" ({comment})" if comment else ""))
        if self.skipped:
            path, reason = self.skipped[0]
            lines.append(f"{len(self.skipped)} other files skipped, e.g. {path.name}: {reason}")
        return "\n".join(lines)


def send_folder(
    folder: Path,
    host: str,
    port: int,
    *,
    calling_ae: str = "RECLAIM_SCU",
    called_ae: str = "RECLAIM",
    associations: int = 1,
    on_progress: Progress | None = None,
) -> SendSummary:
    """Send every DICOM file under `folder` (or one file) over `associations` parallel associations.

    Raises FileNotFoundError for a missing folder, InvalidInput when nothing is DICOM or the peer refuses us, Transient when
    nobody answers. A lost association or a refused file is no exception but part of the summary.
    """
    summary = SendSummary()
    items = list(find_items(folder, summary.skipped))
    if not items:
        raise InvalidInput(f"{folder} holds no DICOM files (files with a DICM prefix and file meta information)")
    summary.total = len(items)
    sender = _Sender(host, port, calling_ae, called_ae, summary, on_progress or (lambda _done, _total: None))
    with ThreadPoolExecutor(max_workers=associations) as pool:
        list(pool.map(sender.send, partition(items, associations)))
    return summary


def find_items(folder: Path, skipped: list[tuple[Path, str]]) -> Iterator[Item]:
    """DICOM files under a folder in order of their path; others go to `skipped` with the reason."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist")
    paths = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        try:
            yield Item(path, _pair_of(path))
        except (OSError, ValueError) as error:
            skipped.append((path, str(error)))


def partition(items: Sequence[Item], associations: int) -> list[list[Item]]:
    """Shares of the items, one association each: at most 128 presentation contexts a share, and `associations` shares or more."""
    pairs = list(dict.fromkeys(item.pair for item in items))
    shares: list[list[Item]] = []
    for start in range(0, len(pairs), MOST_CONTEXTS):
        wanted = set(pairs[start : start + MOST_CONTEXTS])
        group = [item for item in items if item.pair in wanted]
        shares += [group[number::associations] for number in range(associations)]
    return [share for share in shares if share]


def _pair_of(path: Path) -> Pair:
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            raise ValueError("no DICM prefix")
    try:
        meta = read_file_meta_info(path)
        pair = (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
        complete = all(is_valid_uid(uid) for uid in (*pair, str(meta.MediaStorageSOPInstanceUID)))
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds for damaged file meta information
        raise ValueError(f"damaged file meta information ({type(error).__name__})") from None
    if not complete:
        raise ValueError("incomplete file meta information")
    if pair[0] == "1.2.840.10008.1.3.10":
        raise ValueError("DICOMDIR, an index of other files")
    return pair


@dataclass
class _Sender:
    """Sends shares of files, one association at a time per thread, and keeps the common summary."""

    host: str
    port: int
    calling_ae: str
    called_ae: str
    summary: SendSummary
    on_progress: Progress
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, share: Sequence[Item]) -> None:
        """Send a share; an association that is lost on the way is opened again for the rest."""
        rest = list(share)
        for _ in range(ASSOCIATION_ATTEMPTS):
            rest = self._over_one_association(rest)
            if not rest:
                return
        for _ in rest:
            self._note(NO_ANSWER, "the receiver ended the association")

    def _over_one_association(self, items: Sequence[Item]) -> list[Item]:
        association = self._associate({item.pair for item in items})
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
        for number, item in enumerate(items):
            if item.pair not in accepted:
                self._note(NOT_ACCEPTED)
            elif not self._send_one(association, item, number + 1):
                association.abort()
                return list(items[number:])
        association.release()
        return []

    def _send_one(self, association: Any, item: Item, number: int) -> bool:
        """Send one file, again while the receiver is out of resources (A7xx). False when the association is lost."""
        for delay in (*RETRY_DELAYS_S, None):
            try:
                response = association.send_c_store(item.path, msg_id=number % 65535 + 1)
            except RuntimeError:
                return False
            if "Status" not in response:
                return False
            if response.Status >> 8 != 0xA7 or delay is None:
                break
            time.sleep(delay)
        self._note(f"{response.Status:04X}", str(response.get("ErrorComment", "") or ""))
        return True

    def _associate(self, pairs: Iterable[Pair]) -> Any:
        ae = AE(self.calling_ae)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.connection_timeout = ae.acse_timeout = 10.0
        ae.dimse_timeout = ae.network_timeout = TIMEOUT_S
        contexts = [build_context(sop_class, syntax) for sop_class, syntax in sorted(pairs)]
        association = ae.associate(self.host, self.port, contexts=contexts, ae_title=self.called_ae)
        if association.is_established:
            return association
        raise self._why_not(association)

    def _why_not(self, association: Any) -> Exception:
        peer = f"{self.host}:{self.port}"
        if association.is_rejected:
            answer = association.acceptor.primitive
            reason = f"{answer.source_str}: {answer.reason_str}" if answer else "no reason given"
            if answer is not None and answer.result == 0x02:
                return Transient(f"{peer} is busy and refuses associations for now ({reason})")
            return InvalidInput(f"{peer} refuses the association of {self.calling_ae} to {self.called_ae} ({reason})")
        if association.is_aborted and association.acceptor.primitive is not None:
            return InvalidInput(f"{peer} accepts none of the files' types, or aborted the association")
        return Transient(f"nobody who speaks DICOM answers at {peer}: is the receiver running?")

    def _note(self, outcome: str, comment: str = "") -> None:
        with self._lock:
            self.summary.outcomes[outcome] += 1
            if comment:
                self.summary.comments.setdefault(outcome, comment)
            self.on_progress(sum(self.summary.outcomes.values()), self.summary.total)


pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True  # noqa: SLF001 - how the library is told to send files without decoding them
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its lines quote UIDs
