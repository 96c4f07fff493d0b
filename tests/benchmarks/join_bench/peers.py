"""Stream frameworks doing the same join, with what they have for recovery switched on. They only join: no batches, no outbox."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from schemas.events import Label, Prediction
from schemas.topics import BY_NAME, LABEL, PREDICTION

from .meter import Meter, Outcome

CHECKPOINT_S = 1.0
"""About as often as ours commits."""


class Seen:
    """What a peer emitted last for each study. Ends the meter when all studies have their final truth."""

    def __init__(self, truths: dict[str, str], done: Callable[[], None]) -> None:
        self.meter = Meter()
        self.wanted, self.truths, self.right = truths, dict[str, str](), 0
        self.done = done

    def emit(self, study: str, truth: str) -> None:
        """One joined case, or its correction."""
        before = self.truths.get(study)
        self.truths[study] = truth
        wanted = self.wanted[study]
        self.right += (truth == wanted) - (before == wanted)
        if self.right == len(self.wanted):
            self.meter.end()
            self.done()


def joined(state: dict[str, Any] | None, topic: str, body: bytes) -> tuple[dict[str, Any], str | None]:
    """The study's next state and the truth to emit, if any: the same rules as ours, with the same validation."""
    event: Any = BY_NAME[topic].model.model_validate_json(body)
    state = dict(state or {})
    if isinstance(event, Prediction):
        if "predicted" in state:
            return state, None
        state["predicted"], state["probabilities"] = event.predicted, event.probabilities
        return state, state.get("value")
    if not isinstance(event, Label) or event.labelled_at.timestamp() <= state.get("at", 0.0):
        return state, None
    changed = state.get("value") != event.value
    state["at"], state["value"] = event.labelled_at.timestamp(), event.value
    return state, event.value if changed and "predicted" in state else None


def run(kind: str, truths: dict[str, str], job: dict[str, Any]) -> tuple[Meter, Outcome]:
    """Run one of the peers."""
    return {"quixstreams": quixstreams, "bytewax": bytewax}[kind](truths, job)


def quixstreams(truths: dict[str, str], job: dict[str, Any]) -> tuple[Meter, Outcome]:
    """Both topics into one keyed stream; state in RocksDB with a changelog topic, a checkpoint every second."""
    from quixstreams import Application

    application = Application(
        broker_address=job["bootstrap"],
        consumer_group=job["group"],
        auto_offset_reset="earliest",
        state_dir=Path(job["folder"]) / "state",
        use_changelog_topics=True,
        commit_interval=CHECKPOINT_S,
        loglevel="ERROR",
        consumer_extra_config={"session.timeout.ms": 6000},
    )
    seen = Seen(truths, application.stop)
    streams = []
    for name in (PREDICTION.name, LABEL.name):
        topic = application.topic(name, value_deserializer="bytes", key_deserializer="str")
        streams.append(application.dataframe(topic).apply(_tagged(name), metadata=True))

    def step(item: list[Any], state: Any) -> None:
        seen.meter.begin()
        topic, study, body = item
        after, truth = joined(state.get("s"), topic, body)
        state.set("s", after)
        if truth is not None:
            seen.emit(study, truth)

    streams[0].concat(streams[1]).update(step, stateful=True)
    application.run()
    return seen.meter, Outcome(seen.truths, None)


def _tagged(name: str) -> Callable[..., list[Any]]:
    def tag(value: bytes, key: Any, _timestamp: int, _headers: Any) -> list[Any]:
        return [name, key.decode() if isinstance(key, bytes) else str(key), value]

    return tag


def bytewax(truths: dict[str, str], job: dict[str, Any]) -> tuple[Meter, Outcome]:
    """A stateful map keyed by study; recovery partitions in SQLite, an epoch every second. Only a signal ends it."""
    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import cluster_main

    folder = Path(job["folder"]) / "recovery"
    folder.mkdir(parents=True)
    init_db_dir(folder, 1)
    finished = threading.Event()
    seen = Seen(truths, finished.set)
    flow = Dataflow("join")
    source = KafkaSource([job["bootstrap"]], [PREDICTION.name, LABEL.name], tail=True, batch_size=2000)
    stream = op.input("in", flow, source)

    def step(state: dict[str, Any] | None, message: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        seen.meter.begin()
        after, truth = joined(state, message.topic, message.value)
        return after, [] if truth is None else [(message.key.decode(), truth)]

    keyed = op.key_on("key", stream, lambda message: message.key.decode())
    results = op.stateful_flat_map("join", keyed, step)
    op.inspect("emitted", results, lambda _step, item: seen.emit(*item[1]))
    op.output("out", results, _sink())
    threading.Thread(target=_interrupt_when, args=(finished,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        cluster_main(flow, [], 0, recovery_config=RecoveryConfig(str(folder)), epoch_interval=timedelta(seconds=CHECKPOINT_S))
    return seen.meter, Outcome(seen.truths, None)


def _sink() -> Any:
    from bytewax.outputs import DynamicSink, StatelessSinkPartition

    class Nothing(StatelessSinkPartition[Any]):
        def write_batch(self, items: list[Any]) -> None:
            """The results were looked at before."""

    class Sink(DynamicSink[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Nothing:
            return Nothing()

    return Sink()


def _interrupt_when(finished: threading.Event) -> None:
    finished.wait()
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
