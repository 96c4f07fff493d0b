"""Objects and broken peers whose data sets go past the state machine, over TCP and over TLS: each loses its own association."""

import shutil
import ssl
import struct
import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest
from pydicom.uid import generate_uid

from listeners.dicom.echo import echo
from tests.dicom_listener import Listener, encoded, make
from tests.dicom_wire import (
    ABORT,
    CT,
    EXPLICIT,
    RELEASE_RQ,
    RELEASED,
    association_request,
    command,
    connect,
    p_data,
    receive_pdu,
    status_in,
)

STORE, ACCEPT = 0x0001, 2
TIMEOUT_S = 0.8
A_LOT = 120_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED over TLS: openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "server.crt", folder / "server.key"
    ask = [
        "req",
        "-x509",
        "-days",
        "2",
        "-nodes",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-subj",
        "/CN=server",
    ]
    subprocess.run([shutil.which("openssl"), *ask, "-keyout", key, "-out", made], check=True, capture_output=True, timeout=20)
    return made, key


@pytest.fixture(scope="module", params=["tcp", "tls"])
def site(request, tmp_path_factory, sqlite_template):
    """A listener, and how to connect to it."""
    folder = tmp_path_factory.mktemp(f"bulk-{request.param}")
    path = folder / "database.sqlite"
    path.write_bytes(sqlite_template.read_bytes())
    limits, context = {"network_timeout_s": TIMEOUT_S, "max_object_bytes": 2_000_000}, None
    if request.param == "tls":
        limits["tls_certificate"], limits["tls_key"] = request.getfixturevalue("certificate")
        context = ssl.create_default_context(cafile=limits["tls_certificate"])
        context.check_hostname = False
    with Listener(folder / "state", f"sqlite:///{path}", **limits) as running:
        yield running, context


@contextmanager
def associated(site):
    listener, context = site
    with connect(listener.port) as plain:
        connection = context.wrap_socket(plain) if context else plain
        connection.sendall(association_request((CT, EXPLICIT)))
        assert receive_pdu(connection)[0] == ACCEPT
        yield connection
    wait_until(lambda: not listener.temporary())


def wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def large(tmp_path, side=900):
    """An object of 0.8 MB and more, and its data set."""
    dataset = make(f"bulk{side}", tmp_path, "CT")
    dataset.Rows = dataset.Columns = side
    dataset.PixelData = np.random.default_rng(side).integers(0, 255, side * side, dtype=np.uint8).tobytes()
    dataset.SOPInstanceUID = generate_uid()
    return dataset, encoded(dataset)


@pytest.mark.parametrize("most", [131_000, 16_000])
def test_large_objects_are_stored_byte_for_byte_however_they_are_cut(site, tmp_path, most):
    listener, _ = site
    rng = np.random.default_rng(most)
    with associated(site) as connection:
        for number in range(3):
            dataset, data = large(tmp_path, 900 + number)
            stream = p_data(1, 3, command(STORE, instance=dataset.SOPInstanceUID))
            for start in range(0, len(data), most):
                stream += p_data(1, 2 if start + most >= len(data) else 0, data[start : start + most])
            at = 0
            while at < len(stream):
                size = int(rng.integers(1, 300_000))
                connection.sendall(stream[at : at + size])
                at += size
            assert status_in(receive_pdu(connection)[1]) == 0
            stored = listener.archive / listener.instance(dataset.SOPInstanceUID).path
            assert stored.read_bytes().endswith(data)
        connection.sendall(RELEASE_RQ)
        assert receive_pdu(connection)[0] == RELEASED


def begun(sent):
    """A C-STORE whose data set's first fragment is announced with A_LOT bytes, `sent` of which come."""
    header = struct.pack(">BBLLBB", 4, 0, A_LOT + 6, A_LOT + 2, 1, 0)
    return p_data(1, 3, command(STORE)) + header + bytes(sent)


@pytest.mark.parametrize("sent", [0, 50_000, A_LOT - 1, A_LOT])
def test_silence_inside_a_data_set_ends_in_an_abort(site, sent):
    with associated(site) as connection:
        connection.sendall(begun(sent))
        if site[1] is None:
            assert echo("127.0.0.1", site[0].port, called_ae="ANY")
        connection.settimeout(4 * TIMEOUT_S)
        assert receive_pdu(connection)[0] == ABORT


def test_dripping_inside_a_data_set_ends_in_time(site):
    with associated(site) as connection:
        connection.sendall(begun(50_000))
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 - TLS and TCP say it differently
            while time.monotonic() - began < 8:
                connection.sendall(b"xx")
                time.sleep(0.05)
        assert time.monotonic() - began < 4 * TIMEOUT_S + 1


def test_an_abort_between_two_fragments_is_noticed(site, caplog):
    with associated(site) as connection:
        connection.sendall(begun(A_LOT) + struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, 0, 0))
        connection.settimeout(5)
        assert receive_pdu(connection) == (None, b"")
    assert "an abort by the peer" in caplog.text


def test_a_peer_that_vanishes_inside_a_data_set_leaves_nothing(site):
    before = site[0].files()
    with associated(site) as connection:
        connection.sendall(begun(70_000))
    assert site[0].files() == before


def test_an_object_without_end_is_cut_off(site):
    with associated(site) as connection:
        connection.sendall(p_data(1, 3, command(STORE)))
        with pytest.raises(OSError):  # noqa: PT011 - TLS and TCP say it differently
            for _ in range(400):
                connection.sendall(p_data(1, 0, bytes(A_LOT)))


def test_an_object_beyond_the_limit_is_answered_a700(site):
    with associated(site) as connection:
        connection.sendall(p_data(1, 3, command(STORE)) + p_data(1, 0, bytes(A_LOT)) * 20 + p_data(1, 2, b"12"))
        assert status_in(receive_pdu(connection)[1]) == 0xA700
        connection.sendall(RELEASE_RQ)
        assert receive_pdu(connection)[0] == RELEASED
