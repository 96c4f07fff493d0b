"""What the variants run against: the embedded broker with the events on it, and a PostgreSQL server with all its promises."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from schemas.topics import TOPICS
from services.runtime.embedded import EmbeddedBroker

from .workload import PARTITIONS, Workload


@contextmanager
def filled_broker(work: Workload) -> Iterator[EmbeddedBroker]:
    """An embedded broker that holds the workload in its order."""
    with EmbeddedBroker() as broker:
        asyncio.run(_fill(broker.bootstrap, work))
        yield broker


async def _fill(bootstrap: str, work: Workload) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    # quixstreams asks for the retention of the topics that it reads, and the embedded broker tells only what was stated.
    names = [name for topic in TOPICS for name in (topic.name, topic.dead_letter)]
    await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs={"retention.ms": "604800000"}) for name in names])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20, max_batch_size=262_144)
    await producer.start()
    try:
        for record in work.records:
            headers = [(name, value.encode()) for name, value in record.headers.items()]
            await producer.send(record.topic, record.body, record.key.encode(), record.partition, headers=headers)
    finally:
        await producer.stop()


def postgres_binaries() -> Path | None:
    """Folder of PostgreSQL's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres(binaries: Path) -> Iterator[str]:
    """Administrator's address of a private server on a unix socket: fsync and synchronous commit on."""
    folder = Path(tempfile.mkdtemp(prefix="join-pg-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    make = [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    subprocess.run(make, check=True, capture_output=True, user=user, cwd=folder)
    command = [binaries / "postgres", "-D", folder / "data", "-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd=folder)
    try:
        url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        _wait(url)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str) -> None:
    engine = create_engine(url)
    for _ in range(300):
        try:
            with engine.connect():
                engine.dispose()
                return
        except OperationalError:
            time.sleep(0.1)
    raise RuntimeError("PostgreSQL does not start")


def fresh_database(server: str) -> str:
    """A new, empty database on the server."""
    name = f"join_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")
