"""Senders that count what was acknowledged, and peers that break things. Every thread draws from a generator of its own seed."""

import contextlib
import hashlib
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Final

from dicom_bench.loads import Template
from dicom_bench.scu import SUCCESS, Item, Refused, Scu
from dicom_bench.servers import program

CUT, LOST_ANSWER, RESEND, CONFLICT = 0.01, 0.005, 0.01, 0.03
"""Chances for each instance sent by our SCU."""
_TRIES: Final = 500
_BATCH: Final = re.compile(r"Sending file: (\S+)(.*?)(?=Sending file:|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Work:
    """Instances of one study, to be sent in one go; `not_before` on the monotonic clock."""

    study: int
    numbers: tuple[int, ...]
    not_before: float = 0.0


@dataclass
class Ledger:
    """What senders know. `acknowledged`: SOP Instance UID to SHA-256 of the data set that was answered with success."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    where: list[tuple[int, int]] = field(default_factory=list)
    conflicts: dict[str, bool] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, item: Item, place: tuple[int, int]) -> None:
        """A success: from now on the listener owes us these bytes."""
        with self._lock:
            if item.sop_instance not in self.acknowledged:
                self.where.append(place)
            self.acknowledged[item.sop_instance] = digest_of(item)

    def count(self, what: str) -> None:
        """One more of something that happened."""
        with self._lock:
            self.events[what] += 1

    def complain(self, what: str) -> None:
        """Something that must not happen."""
        with self._lock:
            self.wrong.append(what)

    def conflict(self, item: Item, *, answered: bool) -> None:
        """Other bytes for an acknowledged UID were sent; True once they were answered."""
        with self._lock:
            self.conflicts[digest_of(item)] = answered


def digest_of(item: Item) -> str:
    """SHA-256 of a data set."""
    return hashlib.sha256(item.dataset).hexdigest()


class Lane:
    """One sender: takes work until there is none, and sends each instance again until it is acknowledged."""

    def __init__(self, address: tuple[str, int], template: Template, work: "Queue[Work]", ledger: Ledger, seed: int) -> None:
        self.address, self.template, self.work, self.ledger = address, template, work, ledger
        self.chance = random.Random(seed)

    def run(self) -> None:
        """Until the queue is empty; a defect of the sender itself counts as wrong."""
        try:
            while (work := _next(self.work)) is not None:
                self.deliver(work)
        except Exception as error:  # noqa: BLE001 - a thread's exception would go unseen
            self.ledger.complain(f"{type(self).__name__} ended with {error!r}")

    def deliver(self, work: Work) -> None:
        """Send until everything is acknowledged."""
        waiting = list(work.numbers)
        for _ in range(_TRIES):
            try:
                self._send(work.study, waiting)
            except (OSError, Refused) as error:
                self.ledger.count(f"association ended: {type(error).__name__}")
                time.sleep(self.chance.uniform(0.05, 0.3))
            if not waiting:
                return
        self.ledger.complain(f"{len(waiting)} instances of study {work.study} not acknowledged after {_TRIES} associations")

    def _send(self, study: int, waiting: list[int]) -> None:
        """One association; takes out of `waiting` what was acknowledged."""
        with Scu(self.address, [(self.template.sop_class, self.template.syntax)], timeout_s=30) as scu:
            while waiting:
                item = self.template.item(study, waiting[0])
                self._maybe_break(scu, item)
                status = scu.store(item)
                if status != SUCCESS:
                    self.ledger.count(f"answered {status:04X}")
                    time.sleep(0.2)
                    return
                self.ledger.acknowledge(item, (study, waiting.pop(0)))
                self._maybe_repeat(scu)

    def _maybe_break(self, scu: Scu, item: Item) -> None:
        draw = self.chance.random()
        if draw < CUT:
            request = scu.request(item)
            scu.socket.sendall(request[: self.chance.randrange(1, len(request))])
            self.ledger.count("cut inside a request")
            raise ConnectionAbortedError
        if draw < CUT + LOST_ANSWER:
            scu.socket.sendall(scu.request(item))
            self.ledger.count("closed before the answer")
            raise ConnectionAbortedError

    def _maybe_repeat(self, scu: Scu) -> None:
        draw = self.chance.random()
        if draw < RESEND:
            item = self.template.item(*self.chance.choice(self.ledger.where))
            status = scu.store(item)
            self.ledger.count("resent")
            if status != SUCCESS:
                self.ledger.count(f"resend answered {status:04X}")
        elif draw < RESEND + CONFLICT:
            self._contradict(scu, self.template.item(*self.chance.choice(self.ledger.where)))

    def _contradict(self, scu: Scu, item: Item) -> None:
        other = replace(item, dataset=item.dataset[:-8] + self.chance.randbytes(8))
        self.ledger.conflict(other, answered=False)
        status = scu.store(other)
        self.ledger.count(f"other bytes answered {status:04X}")
        self.ledger.conflict(other, answered=status == 0xC000)
        if status == SUCCESS:
            self.ledger.complain(f"other bytes for an archived instance were answered with success: {item.sop_instance}")


class StorescuLane(Lane):
    """The same with DCMTK's storescu, whose log says what was acknowledged."""

    def __init__(self, address: tuple[str, int], template: Template, work: "Queue[Work]", ledger: Ledger, folder: Path) -> None:
        super().__init__(address, template, work, ledger, 0)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _send(self, study: int, waiting: list[int]) -> None:
        for number in waiting:
            (self.folder / f"{number}.dcm").write_bytes(self.template.file_of(study, number))
        names = [f"{number}.dcm" for number in waiting]
        command = [program("storescu"), "-v", "-R", "-aec", "RECLAIM", self.address[0], str(self.address[1]), *names]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": self.folder}
        done = subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, check=False, timeout=120, **options)
        for name, log in _BATCH.findall(done.stdout.decode(errors="replace")):
            if "Received Store Response (Success)" in log:
                number = int(Path(name).stem)
                self.ledger.acknowledge(self.template.item(study, number), (study, number))
                waiting.remove(number)
        for name in names:
            (self.folder / name).unlink()
        self.ledger.count("storescu associations")
        if waiting:
            time.sleep(0.2)


def _next(work: "Queue[Work]") -> Work | None:
    """The next work, after its time has come; None when there is none."""
    try:
        found = work.get_nowait()
    except Empty:
        return None
    time.sleep(max(0.0, found.not_before - time.monotonic()))
    return found


def _noise(address: tuple[str, int], chance: random.Random) -> None:
    with socket.create_connection(address, 5) as connection:
        connection.sendall(chance.randbytes(chance.randrange(1, 5000)))


def _browser(address: tuple[str, int], _: random.Random) -> None:
    with socket.create_connection(address, 5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.settimeout(2)
        connection.recv(100)


def _silence(address: tuple[str, int], chance: random.Random) -> None:
    with socket.create_connection(address, 5):
        time.sleep(chance.uniform(0.0, 3.0))


def _endless_request(address: tuple[str, int], chance: random.Random) -> None:
    with socket.create_connection(address, 5) as connection:
        connection.sendall(struct.pack(">BBL", chance.choice((1, 4, 7)), 0, 0xFFFF_FFFF) + chance.randbytes(2000))


def _broken_data(address: tuple[str, int], chance: random.Random) -> None:
    """A proper association, then PDVs whose lengths lie."""
    contexts = [("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1")]
    scu = Scu(address, contexts, timeout_s=5)
    try:
        scu.socket.sendall(
            struct.pack(">BBLLBB", 4, 0, 100, chance.randrange(1 << 32), 1, chance.randrange(4)) + chance.randbytes(94)
        )
        scu.socket.settimeout(2)
        scu.socket.recv(100)
    finally:
        scu.close()


RUBBISH: Final[Sequence[Callable[[tuple[str, int], random.Random], None]]] = (
    _noise,
    _browser,
    _silence,
    _endless_request,
    _broken_data,
)


def pester(address: tuple[str, int], ledger: Ledger, stop: threading.Event, seed: int) -> None:
    """Rubbish connections, a few a second, until stopped."""
    chance = random.Random(seed)
    while not stop.wait(chance.uniform(0.05, 0.5)):
        kind = chance.choice(RUBBISH)
        with contextlib.suppress(OSError, Refused):
            kind(address, chance)
        ledger.count(f"rubbish: {kind.__name__.strip('_')}")
