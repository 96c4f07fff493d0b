"""The demonstration as a story in chapters; each chapter is a function of the play."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from listeners.chat.conversation import ask, await_reply
from listeners.demo import stage as look
from listeners.demo.builtin import BuiltinSource
from listeners.demo.cohort import AFTER, BEFORE, LabelledImage, Scanner, Source
from listeners.demo.folder import FolderSource, UnusableFolder
from listeners.demo.results import PhaseResult, phase_result
from listeners.demo.screen import Screen
from listeners.demo.stage import DemoFailure, Stage
from listeners.demo.studies import Phase, write_development, write_phase
from listeners.dicom.send import send_folder
from listeners.labels.csv_import import import_csv
from listeners.training import TrainingRequest, train_and_register
from schemas.tables import Evaluation, Job, Order
from schemas.vocabulary import JobState, UserRole
from services.runtime.chance import Standing
from services.runtime.identity import KEY_FILE

MODEL = "demo"
RUNGS = 4
"""Remedies that are watched before the story ends without a repair."""
QUESTION = "What happened to the demo model, and is it healthy now?"


@dataclass(frozen=True)
class DemoOptions:
    """What the person asked for."""

    data: Path | None
    shifted: Path | None
    modality: str
    state: Path
    network: str
    seed: int
    keep: bool


@dataclass
class Play:
    """The state of the story as it goes."""

    options: DemoOptions
    source: Source
    screen: Screen
    stage: Stage
    sent: int = 0
    results: list[PhaseResult] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the studies to be sent lie."""
        return self.options.state / "studies"


def tell(options: DemoOptions, console: Console) -> int:
    """Play the whole story; returns the exit code (0: decayed, repaired and healthy again)."""
    screen, began = Screen(console), time.monotonic()
    try:
        source = _source(options)
        _clear(options.state)
        _draw_roles(options)
        with Stage(options.state, _overrides()) as stage:
            play = Play(options, source, screen, stage)
            _play(play)
            play.summary["seconds"] = round(time.monotonic() - began, 1)
            _close(play)
            if options.keep:
                _keep(play)
    except (DemoFailure, UnusableFolder) as error:
        console.print(f"[red]The demonstration stopped:[/] {error}")
        return 1
    return 0 if play.summary["outcome"] == "recovered" else 1


def _source(options: DemoOptions) -> Source:
    if options.data is None:
        return BuiltinSource(options.seed)
    return FolderSource(options.data, options.shifted, options.modality, options.seed)


def _clear(state: Path) -> None:
    """Empty the folder of an earlier demonstration, and only of one."""
    marker = state / ".reclaim-demo"
    if state.exists() and any(state.iterdir()) and not marker.exists():
        raise DemoFailure(f"{state} is not empty and not of an earlier demonstration; name another folder with --state")
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    marker.touch()


def _draw_roles(options: DemoOptions) -> None:
    """A pseudonym key that follows from the seed: it decides which patients raise alarms, so a run can be repeated."""
    path = options.state / "state" / KEY_FILE
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(hashlib.sha256(f"demonstration {options.seed}".encode()).hexdigest(), encoding="ascii")


def _overrides() -> dict[str, str]:
    """Settings that make a year's events happen in minutes, and suit a small network that was trained from scratch."""
    return {
        "RECLAIM_DICOM_QUIET_PERIOD_S": "1",
        "RECLAIM_JOIN_BATCH_SIZE": "40",
        "RECLAIM_POLICY_COOL_DOWN_S": "0",
        "RECLAIM_REMEDIATION_EPOCHS": "30",
        "RECLAIM_REMEDIATION_BODY_LEARNING_RATE": "0.001",
        # Half of the patients teach: of a third of them the small network does not learn the classes' new borders well enough.
        "RECLAIM_JOIN_TUNE_SHARE": "0.5",
        "RECLAIM_JOIN_GATE_SHARE": "0.2",
    }


def _play(play: Play) -> None:
    play.screen.title(play.source.name, play.source.note)
    _train(play)
    _start(play)
    stable, shifted = play.source.stable(), play.source.shifted()
    _before(play, stable)
    evaluation = _decline(play, shifted)
    if evaluation.status == "degraded":
        _mend(play, evaluation, shifted)
    else:
        play.summary["outcome"] = "no decline found"
    _ask(play)


def _mend(play: Play, evaluation: Evaluation, stream: Iterator[LabelledImage]) -> None:
    """Follow the agents up the ladder: a remedy that the gate turns down is followed by the next."""
    orders: list[Order] = []
    while len(orders) < RUNGS and (order := _order(play, evaluation, [each.order_id for each in orders])):
        orders.append(order)
        result = _repair(play, order).result
        if result.get("verdict") == "promote":
            _recovered(play, stream, int(result["challenger"]))
            return
    play.summary["outcome"] = "not promoted"


def _train(play: Play) -> None:
    play.screen.chapter("Train a classifier and take its baseline")
    images = play.source.development()
    total = len(images.train) + len(images.valid) + len(images.test)
    with play.screen.progress("writing DICOM files", total) as advance:
        manifest = write_development(play.source, images, play.options.state / "development", BEFORE, lambda: advance(advance=1))
    request = TrainingRequest(
        manifest=manifest,
        name=MODEL,
        task=play.source.task,
        modalities=(play.source.modality,),
        network=play.options.network,
        size=images.train[0].image.shape[0],
        epochs=8,
        seed=play.options.seed,
    )
    with play.screen.progress("training", request.epochs) as advance:
        train_and_register(play.stage.context, request, lambda row: advance(completed=row.epoch), lambda found: _warn(play, found))
        advance(completed=request.epochs)
    play.screen.say(
        f"{len(images.train)} images for training, {len(images.test)} for the baseline; classes: {', '.join(play.source.classes)}"
    )


def _warn(play: Play, found: Standing) -> bool:
    """A classifier at chance level serves here all the same, so that the story can be watched."""
    play.screen.say(f"[bold red]no better than guessing:[/] {found.text}; what follows can show no decline")
    return True


def _start(play: Play) -> None:
    play.screen.chapter("Start the service: DICOM listener, Kafka-compatible broker, consumers, agents")
    play.stage.start()
    play.screen.say(f"C-STORE at 127.0.0.1:{play.stage.dicom_port} (RECLAIM); log: {play.options.state / 'service.log'}")


def _before(play: Play, stream: Iterator[LabelledImage]) -> None:
    play.screen.chapter("Studies of the same scanner arrive over DICOM")
    phase = _send(play, "before", stream, play.source.sizes.stable, BEFORE)
    evaluation = _evaluated(play, 1, phase)
    play.screen.status(evaluation.status, evaluation.summary)
    _record(play, "before", 1, phase)


def _decline(play: Play, stream: Iterator[LabelledImage]) -> Evaluation:
    play.screen.chapter(f"A new scanner goes into service ({AFTER.manufacturer}, station {AFTER.station})")
    sizes = play.source.sizes
    phases = [_send(play, "degraded", stream, sizes.shifted, AFTER)]
    evaluation = _judged(play, phases[0])
    for number in range(sizes.more_portions):
        if evaluation.status == "degraded":
            break
        play.screen.say("no decline is shown yet; more studies of the new scanner arrive")
        phases.append(_send(play, f"degraded-{number + 2}", stream, sizes.portion, AFTER))
        evaluation = _judged(play, phases[-1])
    _record(play, "degraded", 1, *phases)
    return evaluation


def _judged(play: Play, phase: Phase) -> Evaluation:
    evaluation = _evaluated(play, 1, phase)
    play.screen.status(evaluation.status, evaluation.summary)
    cause = evaluation.evidence.get("root_cause") or "no cause found"
    play.screen.say(f"diagnosis: {evaluation.diagnosis}; {cause}", "dim")
    return evaluation


def _order(play: Play, evaluation: Evaluation, known: Sequence[str]) -> Order | None:
    """The next order of a remedy; None when the agents have given one before and give none any more."""
    try:
        order = play.stage.wait("an order", 45 if known else 180, lambda session: look.remedy_order(session, MODEL, known))
    except DemoFailure:
        if not known or not play.stage.is_running:
            raise
        return None
    play.screen.chapter("The agents order the next remedy" if known else "The agents order a remedy")
    play.screen.say(f"[bold]{order.kind} {order.remedy}[/] by {order.actor}: {order.reason}")
    facts = {"remedy": order.remedy, "actor": order.actor, "reason": order.reason, "evaluation": evaluation.evaluation_id}
    play.summary.setdefault("orders", []).append(facts)
    return order


def _repair(play: Play, order: Order) -> Job:
    play.screen.chapter("Fine-tuning, then the gate")
    with play.screen.progress("fine-tuning", None) as advance:
        job = play.stage.wait(
            "the repair",
            300,
            lambda session: _finished(look.job_of(session, order.order_id), advance),
            lambda session: look.job_progress(session, order.order_id),
        )
    if job.state != JobState.SUCCEEDED:
        raise DemoFailure(f"the repair failed: {job.error}")
    verdict = str(job.result.get("verdict"))
    play.screen.say(f"gate: [bold]{verdict}[/]", "green" if verdict == "promote" else "yellow")
    for reason in job.result.get("reasons", []):
        play.screen.say(f"- {reason}")
    play.summary.setdefault("gates", []).append(job.result)
    return job


def _recovered(play: Play, stream: Iterator[LabelledImage], version: int) -> None:
    play.screen.chapter("The repaired version serves; more studies of the new scanner arrive")
    phase = _send(play, "recovered", stream, play.source.sizes.recovered, AFTER)
    evaluation = _evaluated(play, version, phase)
    play.screen.status(evaluation.status, evaluation.summary)
    _record(play, "recovered", version, phase)
    play.summary |= {"outcome": _outcome(play, evaluation), "status": evaluation.status}


def _outcome(play: Play, evaluation: Evaluation) -> str:
    """Recovered: no alarm, and the interval of accuracy or of macro recall lies above that of the decline."""
    decayed, repaired = play.results[-2], play.results[-1]
    pairs = ((decayed.accuracy, repaired.accuracy), (decayed.macro_recall, repaired.macro_recall))
    better = any((after.low or 0.0) > (before.high or 0.0) for before, after in pairs)
    return "recovered" if better and evaluation.status != "degraded" else "not recovered"


def _ask(play: Play) -> None:
    play.screen.chapter("The report, and a question in plain language")
    if play.summary.get("outcome") == "no decline found":
        ask(
            play.stage.context,
            "write a report on the demo model",
            user="demo",
            role=UserRole.ADMIN,
            thread="demo",
            channel="console",
        )
    report = play.stage.wait("a report", 60, lambda session: look.newest_report(session, MODEL))
    path = play.stage.context.settings.reports_dir / report.html
    play.screen.say(f"{report.title}: {path}")
    command = ask(play.stage.context, QUESTION, user="demo", role=UserRole.ADMIN, thread="demo", channel="console")
    reply = await_reply(play.stage.context, command, 60)
    play.screen.say(f'[bold]You:[/] "{QUESTION}"')
    play.screen.say(f"[bold]reclaim:[/] {reply.text if reply else 'no answer within a minute'}")
    play.summary |= {"report": str(path), "question": QUESTION, "answer": reply.text if reply else None}


def _send(play: Play, name: str, stream: Iterator[LabelledImage], count: int, scanner: Scanner) -> Phase:
    """Write, push over C-STORE, wait for the scores, then hand in the labels."""
    items = list(islice(stream, count))
    if not items:
        raise DemoFailure(f"the data has no images left for the chapter {name!r}")
    with play.screen.progress("writing DICOM files", len(items)) as advance:
        phase = write_phase(name, play.source, items, play.folder, scanner, play.sent, lambda: advance(advance=1))
    with play.screen.progress("C-STORE", len(items)) as advance:
        summary = send_folder(
            phase.folder,
            "127.0.0.1",
            play.stage.dicom_port,
            calling_ae=scanner.station,
            called_ae="RECLAIM",
            associations=4,
            on_progress=lambda done, _: advance(completed=done),
        )
    if not summary.complete:
        raise DemoFailure(f"the listener refused studies: {summary.text()}")
    play.sent += len(items)
    _await_count(play, "scored", look.scored)
    import_csv(play.stage.context, phase.labels, source="demo")
    _await_count(play, "labelled", look.labelled)
    return phase


def _await_count(play: Play, text: str, count: Any) -> None:
    with play.screen.progress(text, play.sent) as advance:

        def enough(session: Any) -> bool | None:
            done = count(session)
            advance(completed=min(done, play.sent))
            return True if done >= play.sent else None

        play.stage.wait(f"{play.sent} studies to be {text}", 180, enough, count)


def _evaluated(play: Play, version: int, phase: Phase) -> Evaluation:
    """The newest evaluation once the statistics have caught up with the labels."""
    play.stage.wait("the batches to be evaluated", 180, lambda session: look.caught_up(session, MODEL, version) or None)
    return play.stage.wait(f"an evaluation of {phase.name}", 90, lambda session: look.newest_evaluation(session, MODEL, version))


def _finished(job: Job | None, advance: Any) -> Job | None:
    if job is None:
        return None
    if job.progress.get("epochs"):
        advance(total=job.progress["epochs"], completed=job.progress.get("epoch", 0))
    return job if job.state in {JobState.SUCCEEDED, JobState.FAILED} else None


def _record(play: Play, name: str, version: int, *phases: Phase) -> None:
    keys: Sequence[str] = [play.stage.context.pseudonyms.study(uid) for phase in phases for uid in phase.study_uids]
    play.results.append(phase_result(play.stage.context, name, MODEL, version, keys))


def _close(play: Play) -> None:
    play.screen.table(play.results)
    play.summary |= {
        "images": play.source.name,
        "note": play.source.note,
        "finished_at": datetime.now(UTC).isoformat(),
        "results": [asdict(row) for row in play.results],
    }
    path = play.options.state / "demo-summary.json"
    path.write_text(json.dumps(play.summary, indent=2, default=str), encoding="utf-8")
    play.screen.say(f"outcome: [bold]{play.summary['outcome']}[/] in {play.summary['seconds']:.0f} s; summary: {path}")


def _keep(play: Play) -> None:
    play.screen.say(f"The service keeps running (state: {play.options.state / 'state'}); Ctrl-C ends it.")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        play.screen.say("ended")
