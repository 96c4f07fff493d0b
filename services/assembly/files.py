"""The archive's files: durable before anybody is told, never overwritten, nothing half-written under a final name.

write → fsync(file) → link(2) to the final name → fsync(directory). link(2) instead of rename(2) because it fails where
the name is taken: of two senders of one UID exactly one wins. Where there is no link(2), they take turns by a lock. Files
under `incoming/` are never answered with success, so a dead process's leftovers may go; each process holds a lock on its own
folder there.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INCOMING: Final = "incoming"
CONFLICTS: Final = "conflicts"
_PUBLISHING: Final = "publishing"
_META_START: Final = 132
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_MOST_KNOWN_FOLDERS: Final = 100_000
_MOST_OPEN_FOLDERS: Final = 64
_MOST_PIECES: Final = 512
_CHUNK: Final = 1 << 17
RESENT_AFTER_S: Final = 3600.0
BYTES_BETWEEN_CHECKS: Final = 1 << 23
"""So much is written of one file between two looks at the free space."""


class NotPart10Error(ValueError):
    """The file has no DICOM preamble and file meta information (PS3.10 §7.1)."""


class ArchiveFiles:
    """Writes files into the archive; thread-safe. Call `close` at the end.

    A temporary file that grows while less than `keep_free` bytes are free fails with ENOSPC.
    """

    def __init__(self, root: Path, keep_free: int = 0) -> None:
        self.root = root
        self._keep_free = keep_free
        self._root = os.fspath(root)
        self._durable_folders: set[str] = set()
        self._open_folders: dict[str, _Folder] = {}
        self._opening = threading.Lock()
        self._make_folder(f"{self._root}/{INCOMING}")
        self._own = root / INCOMING / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = os.open(self._own.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._own.mkdir()
        self._own_prefix = f"{self._own}/"
        self._numbers = itertools.count(1)

    def free_bytes(self) -> int:
        """Space left for us on the archive's disk."""
        disk = os.statvfs(self._root)
        return disk.f_bavail * disk.f_frsize

    def open_temporary(self) -> "Temporary":
        """A new file that is not part of the archive yet."""
        return Temporary(f"{self._own_prefix}{next(self._numbers):x}", self._check_space)

    def _check_space(self) -> None:
        if self._keep_free and self.free_bytes() < self._keep_free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, parts: Iterable[bytes]) -> Path:
        """Write a temporary file and bring its bytes to stable storage; OSError leaves nothing behind."""
        temporary = self.open_temporary()
        try:
            pieces = list(parts)
            temporary.write(pieces, sum(map(len, pieces)))
            temporary.sync()
        except OSError:
            temporary.discard()
            raise
        temporary.close()
        return Path(temporary.path)

    def publish(self, temporary: str | Path, relative: str) -> bool:
        """Give a written file its final name as well, durably; False when the name is taken.

        The temporary name stays, for the caller to discard: whoever waits for the answer need not wait for that.
        """
        folder, _, name = f"{self._root}/{relative}".rpartition("/")
        try:
            return self._publish_in(self._opened(folder), os.fspath(temporary), name)
        except FileNotFoundError:
            self._forget_folders()  # somebody removed a folder that we had made
            return self._publish_in(self._opened(folder), os.fspath(temporary), name)

    def _publish_in(self, folder: "_Folder", temporary: str, name: str) -> bool:
        try:
            self._link(temporary, folder.descriptor, name)
        except FileExistsError:
            _touch(name, folder.descriptor)
            os.fsync(folder.descriptor)  # the one who took the name may not have come so far yet
            return False
        os.fsync(folder.descriptor)
        return True

    def _link(self, temporary: str, folder: int, name: str) -> None:
        """Give a file its final name; FileExistsError when it is taken."""
        try:
            os.link(temporary, name, dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with _locked(f"{self._root}/{INCOMING}/{_PUBLISHING}"):
                _rename_unless_taken(temporary, folder, name)

    def _opened(self, folder: str) -> "_Folder":
        """A folder, made if need be, and open: what is linked into it is synchronised in the same folder for certain."""
        return self._open_folders.get(folder) or self._open(folder)

    def _open(self, folder: str) -> "_Folder":
        """The same for one that is not open. Others need not wait for it: to make a folder takes several turns of the disk."""
        with self._opening:
            opened = self._open_folders.get(folder)
            if opened is None:
                self._make_folder(folder)
                opened = self._open_folders[folder] = _Folder(folder)
            if len(self._open_folders) > _MOST_OPEN_FOLDERS:
                del self._open_folders[next(iter(self._open_folders))]
        return opened

    def _forget_folders(self) -> None:
        with self._opening:
            self._open_folders.clear()
            self._durable_folders.clear()

    def discard(self, temporary: str | Path) -> None:
        """Remove a temporary file, if it is still there."""
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108 - once per instance received

    def close(self) -> None:
        """Remove our folder of temporary files and let go of its lock."""
        self._open_folders.clear()
        shutil.rmtree(self._own, ignore_errors=True)
        self._own.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)

    def sweep(self) -> int:
        """Remove what dead processes left under `incoming/`; returns the number of files."""
        removed = 0
        for lock in sorted((self.root / INCOMING).glob("*.lock")):
            if lock != self._own.with_suffix(".lock") and _is_abandoned(lock):
                folder = lock.with_suffix("")
                removed += len(list(folder.glob("*"))) if folder.is_dir() else 0
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
        return removed

    def _make_folder(self, folder: str) -> None:
        """Make a folder and its parents so that they outlive a power cut."""
        if folder in self._durable_folders:
            return
        if folder != self._root:
            parent = folder.rpartition("/")[0]
            self._make_folder(parent)
            Path(folder).mkdir(exist_ok=True)
            _fsync_folder(parent)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
        if len(self._durable_folders) >= _MOST_KNOWN_FOLDERS:
            self._durable_folders.clear()
        self._durable_folders.add(folder)


class Temporary:
    """A file under way: written piece by piece, read back for checks. Whoever opens it closes or discards it."""

    def __init__(self, path: str, check_space: Callable[[], None]) -> None:
        self.path = path
        self.size = 0
        self._check_space, self._check_at = check_space, BYTES_BETWEEN_CHECKS
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def write(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        """Append all pieces, of `size` bytes together; raises OSError."""
        if len(pieces) > _MOST_PIECES:
            self.write([b"".join(pieces)], size)
            return
        end = self.size + size
        if end >= self._check_at:
            self._check_space()
            self._check_at = end + BYTES_BETWEEN_CHECKS
        written = os.writev(self.descriptor, pieces)
        if written == size:
            self.size = end
        else:
            self.size += written
            self._write_rest(pieces, written)

    def _write_rest(self, pieces: Sequence[bytes | memoryview], written: int) -> None:
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            count = os.write(self.descriptor, rest)
            self.size += count
            rest = rest[count:]

    def sync(self) -> None:
        """Bring the bytes to stable storage."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Let go of the descriptor; the file stays. Harmless when closed already."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def discard(self) -> None:
        """Close and remove the file, if it is still there."""
        self.close()
        try:  # noqa: SIM105 - costs less than a context
            os.unlink(self.path)  # noqa: PTH108 - Path costs more than the call
        except OSError:
            pass


@dataclass(frozen=True)
class Part10:
    """Layout of a stored file: where its data set starts, and its size."""

    dataset_offset: int
    size: int


def layout_of(path: Path) -> Part10:
    """Find the data set behind the file meta information by (0002,0000); NotPart10Error when there is none."""
    with path.open("rb") as file:
        head = file.read(_META_START + 12)
        size = os.fstat(file.fileno()).st_size
    if len(head) < _META_START + 12 or head[128:132] != b"DICM" or head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise NotPart10Error("no DICOM file meta information")
    return Part10(_META_START + 12 + int(struct.unpack_from("<L", head, 140)[0]), size)


def same_dataset(one: Path, other: Path) -> bool:
    """Whether two stored files hold the same data set, byte for byte; NotPart10Error when one of them is none."""
    first, second = layout_of(one), layout_of(other)
    if first.size - first.dataset_offset != second.size - second.dataset_offset:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        left.seek(first.dataset_offset)
        right.seek(second.dataset_offset)
        while chunk := left.read(_CHUNK):
            if chunk != right.read(len(chunk)):
                return False
    return True


def dataset_digest(path: Path) -> str:
    """SHA-256 of the data set of a stored file, without its file meta information."""
    offset = layout_of(path).dataset_offset
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def study_folders(root: Path) -> Iterator[Path]:
    """Folders of studies, `root/AB/STUDY_KEY`, in order."""
    for shard in sorted(folder for folder in root.iterdir() if len(folder.name) == 2 and folder.is_dir()):
        yield from sorted(folder for folder in shard.iterdir() if folder.is_dir())


class _Folder:
    """An open folder; closed when nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a file's lock against all threads and processes; a process that dies lets go of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rename_unless_taken(temporary: str, folder: int, name: str) -> None:
    """What link(2) does at once, where there is none; for one at a time."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(temporary, name, dst_dir_fd=folder)
    else:
        raise FileExistsError(errno.EEXIST, "the name is taken")


def _touch(name: str, folder: int) -> None:
    """Note durably that a file came again, at most once an hour: retention counts from its time (see `retention`)."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        if time.time() - os.fstat(descriptor).st_mtime > RESENT_AFTER_S:
            with contextlib.suppress(PermissionError):  # somebody else's file, as after a restore: its row alone says so
                os.utime(descriptor)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
