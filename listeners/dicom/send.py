"""C-STORE SCU: pushes a folder of DICOM files as they are stored, without decoding or re-encoding them.

Every file that was found ends in the tally, whatever the receiver does: a lost association is opened again for the rest, what
failed for a reason that may pass is tried again on a new one, and what remains counts as not answered.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pynetdicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom.presentation import build_context

from services.assembly.headers import is_valid_uid
from services.runtime.errors import InvalidInput, Transient
from services.runtime.scu import Peer, PeerAcceptsNothing, PeerBusy, PeerRefuses, accepted_pairs, open_association, printable

MOST_CONTEXTS: Final = 128
RETRY_DELAYS_S: Final = (1.0, 2.0, 5.0, 10.0)
RECONNECT_DELAYS_S: Final = (1.0, 2.0, 5.0)
FILE_ATTEMPTS: Final = 2
NO_ANSWER: Final = "no answer"
NOT_ACCEPTED: Final = "type not accepted by the receiver"
UNREADABLE: Final = "file cannot be read any more"
MAY_PASS: Final = (0xA7, 0x01)
"""First byte of statuses worth another try: out of resources (A7xx), processing failure (0110)."""
NOT_WORTH_IT: Final = (0x0111, 0x0117, 0x0122, 0x0124)

Progress = Callable[[int, int], None]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Item:
    """A file to send, with its SOP class and transfer syntax."""

    path: Path
    pair: Pair


@dataclass
class SendSummary:
    """What came of each file. Keys of `outcomes` are statuses like `0000` or a reason in words.

    `refused` counts the files of each type (SOP class and transfer syntax) that the receiver does not accept.
    """

    total: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    comments: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Files that the receiver has acknowledged; a warning status (Bxxx) counts."""
        return sum(count for outcome, count in self.outcomes.items() if outcome == "0000" or outcome.startswith("B0"))

    @property
    def complete(self) -> bool:
        """Whether every DICOM file that was found has been acknowledged."""
        return self.stored == self.total

    def types(self) -> list[str]:
        """The refused types with the number of their files, most first."""
        return [f"{count} of {kind}" for kind, count in self.refused.most_common()]

    def text(self) -> str:
        """The outcome for a terminal."""
        lines = [f"{self.stored} of {self.total} files stored."]
        for outcome, count in sorted(self.outcomes.items()):
            if outcome != "0000":
                comment = self.comments.get(outcome, "")
                lines.append(f"{count} with {outcome}" + (f" ({comment})" if comment else ""))
            if outcome == NOT_ACCEPTED:
                lines += [f"  {kind}" for kind in self.types()]
        for reason, count in Counter(reason for _path, reason in self.skipped).most_common():
            example = next(path.name for path, why in self.skipped if why == reason)
            lines.append(f"{count} other file{'s' if count > 1 else ''} skipped, e.g. {example}: {reason}")
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
    """Send to an address; as `send_to`."""
    peer = Peer(f"{host}:{port}", called_ae, host, port)
    return send_to(peer, folder, calling_ae=calling_ae, associations=associations, on_progress=on_progress)


def send_to(
    peer: Peer, folder: Path, *, calling_ae: str, associations: int = 1, on_progress: Progress | None = None
) -> SendSummary:
    """Send every DICOM file under `folder` (or one file) over `associations` parallel associations.

    Raises FileNotFoundError for a missing folder, InvalidInput when nothing is DICOM or the peer refuses us, Transient when
    nobody answers. Once the peer was reached nothing is raised: a lost association or a refused file is part of the summary.
    """
    summary = SendSummary()
    items = list(find_items(folder, summary.skipped))
    if not items:
        raise InvalidInput(f"{folder} holds no DICOM files (files with a DICM prefix and file meta information)")
    summary.total = len(items)
    sender = _Sender(peer, calling_ae, associations == 1, summary, on_progress or (lambda _done, _total: None))
    with ThreadPoolExecutor(max_workers=associations) as pool:
        list(pool.map(sender.send, partition(items, associations)))
    if sender.fault is not None and not sender.reached:
        raise _named(sender.fault, summary)
    return summary


def _named(fault: Exception, summary: SendSummary) -> Exception:
    """A peer's refusal of everything, with what was proposed to it."""
    if not isinstance(fault, PeerAcceptsNothing):
        return fault
    return PeerAcceptsNothing(f"{fault}; proposed were {', '.join(summary.types())}")


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
class _Pending:
    """A file and how often it has come to each outcome that asks for another try."""

    item: Item
    tries: Counter[str] = field(default_factory=Counter)


@dataclass
class _Sender:
    """Sends shares of files, one association at a time per thread, and keeps the common summary."""

    peer: Peer
    calling_ae: str
    alone: bool
    summary: SendSummary
    on_progress: Progress
    reached: bool = False
    fault: Exception | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, share: Sequence[Item]) -> None:
        """Send a share over as many associations as it takes; what cannot be sent is noted, nothing is raised."""
        rest = deque(_Pending(item) for item in share)
        failures = 0
        while rest:
            noted = self._noted()
            try:
                association = self._associate(rest)
                self._over(association, rest)
            except (Transient, InvalidInput) as error:
                if isinstance(error, PeerRefuses) or not self._may_reconnect(error, failures):
                    self._give_up(rest, error)
                    return
            failures = 0 if self._noted() > noted else failures + 1
            if rest and failures > len(RECONNECT_DELAYS_S):
                self._give_up(rest, Transient("the receiver ended the association again and again"))
                return
            if rest:
                time.sleep(RECONNECT_DELAYS_S[max(failures - 1, 0)])

    def _may_reconnect(self, error: Exception, failures: int) -> bool:
        """A receiver that nobody has reached yet is not waited for, unless our own other associations may keep it busy."""
        worth_waiting = self.reached or (isinstance(error, PeerBusy) and not self.alone)
        return worth_waiting and failures < len(RECONNECT_DELAYS_S)

    def _associate(self, rest: Sequence[_Pending]) -> Any:
        pairs = sorted({pending.item.pair for pending in rest})
        contexts = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
        association = open_association(self.peer, contexts, calling_ae=self.calling_ae)
        self.reached = True
        return association

    def _over(self, association: Any, rest: deque[_Pending]) -> None:
        """Send what is in `rest` now; what is still there afterwards needs another association."""
        accepted = accepted_pairs(association)
        for number in range(len(rest)):
            pending = rest.popleft()
            if pending.item.pair not in accepted:
                self._refused(pending.item)
                continue
            response = self._send_one(association, pending.item, number + 1)
            if response is None:
                continue
            if "Status" not in response:
                self._try_again(rest, pending, NO_ANSWER, "the receiver ended the association")
                association.abort()
                return
            outcome, comment = f"{response.Status:04X}", printable(str(response.get("ErrorComment", "") or ""))
            if _may_pass(response.Status):
                self._try_again(rest, pending, outcome, comment)
            else:
                self._note(outcome, comment)
        association.release()

    def _send_one(self, association: Any, item: Item, number: int) -> Any:
        """The response, an empty one when the association is lost, None when the file is gone.

        While the receiver is out of resources (A7xx) it is asked again after a delay.
        """
        for delay in (*RETRY_DELAYS_S, None):
            try:
                response = association.send_c_store(item.path, msg_id=number % 65535 + 1)
            except RuntimeError:
                return {}
            except (OSError, ValueError, AttributeError) as error:
                self._note(UNREADABLE, f"{item.path.name}: {type(error).__name__}")
                return None
            if "Status" not in response or response.Status >> 8 != 0xA7 or delay is None:
                break
            time.sleep(delay)
        return response

    def _try_again(self, rest: deque[_Pending], pending: _Pending, outcome: str, comment: str) -> None:
        """Put a file behind the others for the next association, so that one bad file never keeps the others back."""
        pending.tries[outcome] += 1
        if pending.tries[outcome] < FILE_ATTEMPTS:
            rest.append(pending)
        else:
            self._note(outcome, comment)

    def _give_up(self, rest: Sequence[_Pending], error: Exception) -> None:
        with self._lock:
            self.fault = self.fault or error
        for pending in rest:
            if isinstance(error, PeerAcceptsNothing):
                self._refused(pending.item)
            else:
                self._note(NO_ANSWER, str(error))

    def _noted(self) -> int:
        with self._lock:
            return sum(self.summary.outcomes.values())

    def _refused(self, item: Item) -> None:
        with self._lock:
            self.summary.refused[_words(item.pair)] += 1
        self._note(NOT_ACCEPTED)

    def _note(self, outcome: str, comment: str = "") -> None:
        with self._lock:
            self.summary.outcomes[outcome] += 1
            if comment:
                self.summary.comments.setdefault(outcome, comment)
            self.on_progress(sum(self.summary.outcomes.values()), self.summary.total)


def _may_pass(status: int) -> bool:
    return status >> 8 in MAY_PASS and status not in NOT_WORTH_IT


def _words(pair: Pair) -> str:
    return f"{UID(pair[0]).name}, {UID(pair[1]).name}"


pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True  # noqa: SLF001 - how the library is told to send files without decoding them
