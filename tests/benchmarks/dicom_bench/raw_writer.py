"""The plain limit: one 8-byte length and the bytes over a socket, one file and a 1-byte answer. No DICOM at all.

`python raw_writer.py PORT FOLDER [--durable]` serves; `send` is the sender, which costs next to nothing (sendfile).
"""

import os
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_BUFFER: Final = 80 * 1024


def serve(port: int, folder: Path, *, durable: bool) -> None:
    """One thread for each connection, until killed."""
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        while True:
            connection, (_, number) = listener.accept()
            arguments = (connection, folder, number, durable)
            threading.Thread(target=_receive, args=arguments, daemon=True).start()


def _receive(connection: socket.socket, folder: Path, number: int, durable: bool) -> None:
    view = memoryview(bytearray(_BUFFER))
    directory = os.open(folder, os.O_RDONLY)
    count = 0
    with connection:
        while len(head := connection.recv(8, socket.MSG_WAITALL)) == 8:
            count += 1
            final = folder / f"{number}-{count}"
            temporary = final.with_suffix(".part")
            descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
            _copy(connection, descriptor, struct.unpack(">Q", head)[0], view)
            if durable:
                os.fsync(descriptor)
            os.close(descriptor)
            temporary.rename(final)
            if durable:
                os.fsync(directory)
            connection.sendall(b"\x01")
    os.close(directory)


def _copy(connection: socket.socket, descriptor: int, left: int, view: memoryview) -> None:
    while left:
        count = connection.recv_into(view[: min(left, len(view))])
        if not count:
            raise ConnectionResetError
        left -= count
        os.write(descriptor, view[:count])


def send(port: int, shares: Sequence[Sequence[Path]]) -> None:
    """Send every share of files over a connection of its own, all at the same time; raises OSError when one ends early."""
    failures: list[OSError] = []

    def one(paths: Sequence[Path]) -> None:
        try:
            _send(port, paths)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _send(port: int, paths: Sequence[Path]) -> None:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for path in paths:
            with path.open("rb") as file:
                connection.sendall(struct.pack(">Q", os.fstat(file.fileno()).st_size))
                connection.sendfile(file)
            if connection.recv(1) != b"\x01":
                raise ConnectionResetError("the writer ended")


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), durable="--durable" in sys.argv)
