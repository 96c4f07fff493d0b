"""A peer of our own making on a raw socket: it says exactly what a test wants, right or wrong."""

import socket
import struct
import time
from contextlib import contextmanager

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
ABORT, ACCEPT, REJECT, RELEASED = 7, 2, 3, 6
RELEASE_RQ = struct.pack(">BBLL", 5, 0, 4, 0)


def association_request(*contexts, calling="TEST", called="RECLAIM", max_pdu=16382):
    """An encoded A-ASSOCIATE-RQ; `contexts` are (abstract syntax, *transfer syntaxes), numbered 1, 3, 5 …"""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = max_pdu, "1.2.3"
    request.user_information = [length, implementation]
    proposed = []
    for number, (abstract, *syntaxes) in enumerate(contexts or ((CT, EXPLICIT),)):
        context = build_context(abstract, syntaxes)
        context.context_id = 2 * number + 1
        proposed.append(context)
    request.presentation_context_definition_list = proposed
    return A_ASSOCIATE_RQ(request).encode()


def element(number, value):
    """One element of a command set."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(field, *, sop_class=CT, instance="1.2.3", dataset=True, message_id=1, further=b""):
    """An encoded command set."""
    body = element(0x0002, sop_class.encode()) + element(0x0100, struct.pack("<H", field))
    body += element(0x0110, struct.pack("<H", message_id))
    body += element(0x0700, struct.pack("<H", 0)) if field == 0x0001 else b""
    body += element(0x0800, struct.pack("<H", 0x0001 if dataset else 0x0101))
    body += element(0x1000, instance.encode()) if field == 0x0001 else b""
    body += further
    return element(0x0000, struct.pack("<L", len(body))) + body


def p_data(context, control, data):
    """One P-DATA-TF with one PDV. `control`: 1 command, 2 last fragment."""
    return struct.pack(">BBLLBB", 4, 0, len(data) + 6, len(data) + 2, context, control) + data


def receive_pdu(connection):
    """(type, body) of the next PDU; (None, b"") when the connection has ended."""
    try:
        header = _exactly(connection, 6)
        return header[0], _exactly(connection, int.from_bytes(header[2:], "big"))
    except (EOFError, ConnectionError):
        return None, b""


def _exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def status_in(body):
    """(0000,0900) of a response in a P-DATA-TF."""
    at = body.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return struct.unpack_from("<H", body, at)[0]


def connect(port, timeout=15):
    """A plain connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


LIMIT_EXCEEDED = bytes((2, 3, 2))
"""Result, source and reason of A-ASSOCIATE-RJ: transient, of the presentation service, local limit (PS3.8 Table 9-21)."""


@contextmanager
def accepted(port, *contexts, **options):
    """A raw connection with an accepted association; while slots of ended ones are being freed it asks again."""
    end = time.monotonic() + 5
    while True:
        with connect(port) as connection:
            connection.sendall(association_request(*contexts, **options))
            kind, body = receive_pdu(connection)
            if kind == ACCEPT:
                yield connection
                return
            assert (kind, body[1:4]) == (REJECT, LIMIT_EXCEEDED), body
            assert time.monotonic() < end
        time.sleep(0.05)


def rejection(port, *contexts, **options):
    """(result, source, reason) of an A-ASSOCIATE-RJ; None when the association is accepted."""
    with connect(port) as connection:
        connection.sendall(association_request(*contexts, **options))
        kind, body = receive_pdu(connection)
        assert kind in (ACCEPT, REJECT)
        return tuple(body[1:4]) if kind == REJECT else None
