"""A model with evaluated batches, orders and verdicts in real tables, for the tests of the reports."""

import io

import numpy as np
from pypdf import PdfReader
from sqlalchemy import select

from schemas.events import MaintenanceOrder, MaintenancePromotion, MaintenanceReport
from schemas.tables import BaselineCase, Batch, Case, Evaluation, Job, ModelVersion, Order, Outbox
from schemas.topics import ORDER, PROMOTION, REPORT
from schemas.vocabulary import CaseState, OrderKind, OrderState, Remedy, Verdict
from services.reporting.app import build
from services.runtime import registry
from services.runtime.messages import Record, headers_of

CLASSES = ["glioma", "meningioma", "no tumour", "pituitary"]
MODEL = "brain-mri"
RECALL = {"glioma": 0.9, "meningioma": 0.86, "no tumour": 0.97, "pituitary": 0.93}


def draws(seed, per_class, recall):
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        for _ in range(per_class):
            right = rng.random() < recall[name]
            other = [each for each in CLASSES if each != name]
            predicted = name if right else str(rng.choice(other))
            top = float(rng.uniform(0.7, 0.99) if right else rng.uniform(0.4, 0.9))
            rest = (1 - top) / (len(CLASSES) - 1)
            yield name, predicted, {each: top if each == predicted else rest for each in CLASSES}


def version_row(number, clock, **values):
    return ModelVersion(
        model=MODEL, version=number, bundle=f"{MODEL}/{number}", sha256=f"{number:064x}", created_at=clock.now(), **values
    )


def baseline_rows(number):
    return [
        BaselineCase(
            model=MODEL, version=number, case_key=f"b{index}", patient_key=f"p{index}", truth=truth, predicted=said, probabilities=p
        )
        for index, (truth, said, p) in enumerate(draws(number, 80, RECALL))
    ]


def evaluated_batch(tx, number, *, fallen, status):
    """A batch with its cases and an evaluation whose metrics are counted from them."""
    now, batch_id = tx.clock.now(), f"{MODEL}-1-{number}"
    recall = RECALL | ({"glioma": 0.55, "meningioma": 0.7} if fallen else {})
    cases = list(draws(100 + number, 25, recall))
    tx.session.add(Batch(batch_id=batch_id, model=MODEL, version=1, number=number, cases=100, closed_by="size", closed_at=now))
    for index, (truth, said, p) in enumerate(cases):
        tx.session.add(
            Case(
                study_key=f"{number:016x}{index:016x}",
                model=MODEL,
                version=1,
                task="brain-tumour",
                patient_key=f"{number:016x}{index:016x}",
                role="trigger",
                state=CaseState.BATCHED,
                predicted=said,
                probabilities=p,
                truth=truth,
                batch_id=batch_id,
                acquired_at=now,
                scored_at=now,
                joined_at=now,
            )
        )
    tx.session.add(evaluation_row(batch_id, number, cases, status, now))


def fall_evidence():
    return {
        "class": "glioma",
        "drop": 0.34,
        "drop_low": 0.21,
        "drop_high": 0.47,
        "probability": 0.998,
        "since": "2026-03-28T08:00:00+00:00",
        "root_cause": "since 28 March 2026, ManufacturerModelName Aera; recall of glioma 0.56, was 0.90",
        "statistic_a": 6.31,
        "threshold_a": 5.3,
        "smallest_fall_in_a_year": 0.09,
    }


def metric_rows(cases):
    """What the evaluation counts from cases: recall of each class with its interval, their mean, and the area under the curve."""
    recalls = []
    for name in CLASSES:
        own = [said == truth for truth, said, _ in cases if truth == name]
        share = sum(own) / len(own)
        half = 1.96 * (share * (1 - share) / len(own)) ** 0.5
        bounds = {"low": max(share - half, 0), "high": min(share + half, 1)}
        recalls.append({"name": f"recall:{name}", "value": share, **bounds, "cases": len(own), "baseline": RECALL[name]})
    macro = sum(metric["value"] for metric in recalls) / 4
    bounds = {"low": macro - 0.08, "high": min(macro + 0.07, 1)}
    return [
        {"name": "macro_recall", "value": macro, **bounds, "cases": 100, "baseline": 0.915},
        *recalls,
        {"name": "macro_auroc", "value": 0.912, "low": 0.87, "high": 0.95, "cases": 100, "baseline": 0.981},
    ]


def evaluation_row(batch_id, number, cases, status, now):
    degraded = status == "degraded"
    return Evaluation(
        evaluation_id=f"ev-{batch_id}",
        batch_id=batch_id,
        model=MODEL,
        version=1,
        status=status,
        diagnosis="covariate" if degraded else "none",
        cases=100,
        stream_cases=100 * number,
        metrics=metric_rows(cases),
        evidence=fall_evidence() if degraded else {"statistic_a": 0.2, "threshold_a": 5.3, "smallest_fall_in_a_year": 0.09},
        reclaim_rule=number % 2 == 0,
        summary=(
            "Glioma is found in 56 of 100 patients, 90 on the test set. The alarm is raised."
            if degraded
            else "No decline is seen. 100 cases were compared with the test set."
        ),
        evaluated_at=now,
    )


def order_row(identity, kind, clock, **values):
    return Order(
        order_id=identity,
        idempotency_key=identity,
        kind=kind,
        state=OrderState.ACCEPTED,
        model=MODEL,
        reason="Recall of glioma fell.",
        actor="agent:evaluation",
        created_at=clock.now(),
        updated_at=clock.now(),
        **values,
    )


def ordered(context, kind, *, event_id="order-event", **values):
    """The record of an order whose row exists."""
    identity, now = f"order-{event_id}", context.clock.now()
    with context.database.transaction() as tx:
        tx.session.add(order_row(identity, kind, context.clock))
    data = MaintenanceOrder(
        order_id=identity,
        kind=kind,
        model=MODEL,
        reason="Recall of glioma fell.",
        actor="agent:evaluation",
        ordered_at=now,
        **values,
    )
    return record(ORDER, data, event_id, now)


def record(topic, data, event_id, now):
    return Record(topic.name, 0, 0, MODEL, headers_of(topic, event_id, now), data.model_dump_json().encode())


def reported(context):
    """The events on the report topic."""
    with context.database.read() as session:
        bodies = session.execute(select(Outbox.body).where(Outbox.topic == REPORT.name).order_by(Outbox.id)).scalars()
        return [MaintenanceReport.model_validate_json(body) for body in bodies]


def contents(context, report):
    folder = context.settings.reports_dir / report.report_id
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pdf_text(content):
    """The words of a PDF, in order."""
    return " ".join(" ".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages).split())


def texts(files):
    """All forms of a report that hold words, as text."""
    forms = {name: content.decode() for name, content in files.items() if not name.endswith((".png", ".pdf"))}
    return forms | {name: pdf_text(content) for name, content in files.items() if name.endswith(".pdf")}


def consumer_of(context):
    return build(context).consumers[0]


def tell(context, clock):
    """A model with seven evaluated batches, the last two degraded."""
    with context.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        registry.add_version(tx, version_row(1, clock, origin="registered"), baseline_rows(1), actor="test")
    for number in range(1, 8):
        clock.advance(7 * 86_400)
        status = "degraded" if number >= 6 else "watch" if number == 5 else "healthy"
        with context.database.transaction() as tx:
            evaluated_batch(tx, number, fallen=number >= 5, status=status)
    clock.advance(3600)
    return context


def repaired(context, verdict):
    """The record of the gate's verdict on version 2, with the registry in the state it leaves behind."""
    clock = context.clock
    with context.database.transaction() as tx:
        tx.session.add(order_row("order-remedy", OrderKind.REMEDY, clock, remedy=Remedy.HEAD_ONLY))
        registry.add_version(
            tx, version_row(2, clock, parent=1, origin="run-1", state="challenger"), baseline_rows(2), actor="test"
        )
        job = Job(job_id="run-1", order_id="order-remedy", model=MODEL, remedy=Remedy.HEAD_ONLY, state="succeeded")
        job.settings, job.created_at, job.updated_at = {"epochs": 8, "seed": 0}, clock.now(), clock.now()
        tx.session.add(job)
        if verdict == Verdict.PROMOTE:
            registry.promote(tx, MODEL, 2, actor="gate")
    clock.advance(60)
    data = MaintenancePromotion(
        model=MODEL,
        challenger=2,
        champion_before=1,
        champion_after=2 if verdict == Verdict.PROMOTE else 1,
        verdict=verdict,
        reasons=("Better on 64 gate cases (McNemar exact p = 0.003).", "Not worse than 5 points on any class of the test set."),
        numbers={
            "macro_recall:champion": 0.71,
            "macro_recall:challenger": 0.88,
            "champion_recall:glioma": 0.55,
            "challenger_recall:glioma": 0.86,
            "mcnemar_p": 0.003,
            "gate_cases": 64.0,
            "ece:champion": 0.21,
            "ece:challenger": 0.06,
        },
        order_id="order-remedy",
        actor="service:remediation",
    )
    return record(PROMOTION, data, f"promotion-{verdict}", clock.now())
