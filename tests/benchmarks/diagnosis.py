"""Does the diagnosis name the kind of change, and after how many cases?

    python tests/benchmarks/diagnosis.py --data FOLDER [--quick] [--seeds N] [--least N] [--jobs N] [--json FILE]

FOLDER holds the packed sets brain_mri_nickparvar, cxr_pneumonia_kermany, ct_sars_cov_2 and, for other hospitals,
brain_mri_sartaj_external and cxr_nih_1000. For each a small model is trained at 64 pixels, baselined on 400 images and put
into service: 200 studies as usual, then 200 under a change of known kind and strength (`diagnosis_bench.shifts`), in batches
of 25, one study a patient. What is scored is the evaluation's own outcome (`services.evaluation.evaluate`): its diagnosis
where the detector has alarmed, else the change that its evidence names. Beside it, what the early warning suspects of the
same 200 studies without any label (it cannot know a concept or exchanged labels: for it the right answer is none). `--seeds`
are the draws of each change, `--least` those of the least strength of each, where misses are. `--quick`: one set, one seed.
One thread; about three CPU seconds a change and seed.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_report import arguments, at_least, finish
from diagnosis_bench.scenarios import Scenario, fits, scenario
from diagnosis_bench.shifts import LEAST, SHIFTS
from diagnosis_bench.sites import Scored, Site, make

from schemas.vocabulary import Diagnosis
from services.drift.budget import Budget, calibrate
from services.drift.sample import Reference, Sample, probabilities_of
from services.drift.signals import judge
from services.evaluation.calibration import bound
from services.evaluation.evaluate import Material, evaluate
from services.evaluation.pictures import Pictures
from services.evaluation.stream import StreamCase
from services.runtime.signatures import Images

SETS = (
    ("brain_mri_nickparvar", "MR", "brain_mri_sartaj_external", 8),
    ("cxr_pneumonia_kermany", "CR", "cxr_nih_1000", 5),
    ("ct_sars_cov_2", "CT", "", 8),
)
BATCH = 25
SEEN = (50, 100, 200)
BLIND = ("labels swapped", "meaning of a label")
"""Changes that nobody can see without labels."""
START = datetime(2026, 1, 5, tzinfo=UTC)
BUDGET = Budget(0.2, 365)


@dataclass(frozen=True)
class Row:
    """A baseline case as the evaluation reads it."""

    patient_key: str
    truth: str
    predicted: str
    probabilities: dict[str, float]
    findings: Sequence[str]


@dataclass(frozen=True)
class Found:
    """What was said about one scenario: after 200 cases, and from how many cases on it was right and stayed right."""

    site: str
    title: str
    kind: Diagnosis
    said: Diagnosis
    alarmed: bool
    first: int | None
    suspected: Diagnosis
    seconds: float


def main() -> None:
    """Run all scenarios at all sites and write the confusion matrices."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=2, help="draws of each change at each set")
    parser.add_argument("--least", type=int, default=0, help="draws of the least strength of each change, where more than --seeds")
    parser.add_argument("--jobs", type=int, default=1, help="sets at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data or Path("data")
    sets, seeds = (SETS[:1], (1,)) if options.quick else (SETS, range(1, options.seeds + 1))
    work = [(folder, each, tuple(seeds), 0 if options.quick else options.least) for each in sets]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        found = [each for part in pool.map(at_site, work) for each in part]
    report(found, options.json)


def at_site(work: tuple[Path, tuple[str, str, str, int], tuple[int, ...], int]) -> list[Found]:
    """All scenarios at one site."""
    torch.set_num_threads(1)
    folder, (name, modality, external, epochs), seeds, least = work
    site = make(folder, name, modality, external, epochs=epochs)
    levels = calibrate(reference_of(site), 200, BUDGET, 0)
    more = tuple(range(1, least + 1))
    chosen = [
        (seed, number, shift)
        for number, shift in enumerate(SHIFTS)
        if fits(shift, site)
        for seed in dict.fromkeys((*seeds, *(more if shift.title in LEAST else ())))
    ]
    found = [examine(site, scenario(site, shift, 1000 * seed + number), levels) for seed, number, shift in chosen]
    print(f"{name}: {len(found)} scenarios", flush=True)
    return found


def examine(site: Site, chosen: Scenario, levels: dict[str, float]) -> Found:
    """Evaluate the stream with ever more changed cases, and judge the same cases without labels."""
    started = time.monotonic()
    right: list[tuple[int, Diagnosis, bool]] = []
    for cases in SEEN:
        outcome = evaluate(material(site, chosen, cases))
        change = Diagnosis(str(outcome.evidence.get("change", Diagnosis.NONE)))
        alarmed = outcome.diagnosis not in {Diagnosis.NONE, Diagnosis.PREVALENCE, Diagnosis.UNKNOWN}
        right.append((cases, outcome.diagnosis if alarmed else change, outcome.status.value == "degraded"))
    first = None
    for cases, said, _ in reversed(right):
        if said is not chosen.kind:
            break
        first = cases
    verdict = judge(reference_of(site), sample_of(site, chosen.after), sample_of(site, chosen.after), levels, BUDGET, 0)
    seconds = time.monotonic() - started
    return Found(site.name, chosen.shift.title, chosen.kind, right[-1][1], right[-1][2], first, verdict.suspected, seconds)


def material(site: Site, chosen: Scenario, changed: int) -> Material:
    """An evaluation of the newest batch after `changed` changed cases."""
    before, after = chosen.before, take(chosen.after, changed)
    stream = [*stream_of(before, 0), *stream_of(after, len(before.truth))]
    images = keyed(before.images, 0).joined(keyed(after.images, len(before.truth)))
    baseline = site.baseline
    rows = [
        Row(f"b{number}", truth, said, row, doubts)
        for number, (truth, said, row, doubts) in enumerate(
            zip(baseline.truth, baseline.predicted, baseline.probabilities, baseline.findings, strict=True)
        )
    ]
    answers = {str(number): pair for number, pair in enumerate(zip(baseline.truth, baseline.predicted, strict=True))}
    pictures = Pictures(images, baseline.images, baseline.images, site.probes, answers)
    return Material(
        model=site.name,
        classes=site.spec.classes,
        batch=stream[-1].batch,
        batch_size=BATCH,
        baseline=rows,
        stream=stream,
        thresholds=bound(0.05),
        draws=100,
        seed=0,
        pictures=pictures,
    )


def stream_of(scored: Scored, first: int) -> list[StreamCase]:
    """Cases in batches, one per patient and hour."""
    parts = zip(scored.truth, scored.predicted, scored.probabilities, scored.findings, strict=True)
    return [
        StreamCase(1 + number // BATCH, f"p{number}", truth, said, row, START + timedelta(hours=number), {}, doubts, f"s{number}")
        for number, (truth, said, row, doubts) in enumerate(parts, start=first)
    ]


def keyed(images: Images, first: int) -> Images:
    """The images under the keys of their studies."""
    keys = tuple(f"s{number}" for number in range(first, first + len(images)))
    return Images(keys, images.quality, images.layout, images.embedding)


def take(scored: Scored, count: int) -> Scored:
    """The first cases."""
    images = scored.images.take(range(min(count, len(scored.truth))))
    return Scored(scored.truth[:count], scored.predicted[:count], scored.probabilities[:count], images, scored.findings[:count])


def sample_of(site: Site, scored: Scored) -> Sample:
    """Cases as the early warning sees them."""
    classes = site.spec.classes
    predicted = np.array([classes.index(said) for said in scored.predicted], np.int64)
    probabilities = probabilities_of(scored.probabilities, classes)
    return Sample(classes, probabilities, predicted, scored.images, ({},) * len(scored.truth))


def reference_of(site: Site) -> Reference:
    """The baseline as the early warning sees it."""
    truth = np.array([site.spec.classes.index(truth) for truth in site.baseline.truth], np.int64)
    return Reference(sample_of(site, site.baseline), truth, site.baseline.images, site.probes)


def report(found: Sequence[Found], path: Path | None) -> None:
    """Print both confusion matrices, the wrong ones, and how soon each kind was right."""
    right = [each.said is each.kind for each in found]
    blind = [each for each in found if not each.title.startswith(BLIND)]
    unlabelled = [each.suspected is each.kind for each in blind]
    quiet = [each for each in found if each.kind is Diagnosis.NONE]
    changed = [each for each in found if each.kind is not Diagnosis.NONE]
    targets = [
        at_least(
            "right kind once 200 cases are seen, share of controlled shifts", share([e.said is e.kind for e in changed]), 0.95
        ),
        at_least("the same with those where nothing changed", share(right), 0.95),
    ]
    rows: list[dict[str, Any]] = [*matrix("with labels", [(e.kind, e.said) for e in found])]
    rows += matrix("without labels", [(e.kind, e.suspected) for e in blind])
    rows += [{"what": "without labels", "truth": "right of those that can be seen", "share": share(unlabelled)}]
    rows += [{"what": "nothing changed", "truth": "called so, with labels", "share": share([e.said is e.kind for e in quiet])}]
    rows += delays(found)
    rows += [{"what": "wrong", "truth": f"{e.site}: {e.title}", "said": str(e.said)} for e in found if e.said is not e.kind]
    rows += by_shift(found)
    note = f"{len(found)} scenarios; {np.median([each.seconds for each in found]):.1f} s each (three evaluations and one window)."
    finish("diagnosis", rows, targets, path, note)


def matrix(name: str, pairs: Sequence[tuple[Diagnosis, Diagnosis]]) -> list[dict[str, Any]]:
    """Rows of a confusion matrix: true kind, and how often each kind was said."""
    table: dict[Diagnosis, Counter[str]] = defaultdict(Counter)
    for truth, said in pairs:
        table[truth][str(said)] += 1
    said = [str(kind) for kind in Diagnosis]
    return [{"what": name, "truth": str(kind)} | {each: table[kind][each] for each in said} for kind in Diagnosis if table[kind]]


def delays(found: Sequence[Found]) -> list[dict[str, Any]]:
    """From how many changed cases on each kind was right and stayed right."""
    rows = []
    for kind in Diagnosis:
        times = [each.first for each in found if each.kind is kind and kind is not Diagnosis.NONE]
        if times:
            counts = {f"by {cases}": share([time is not None and time <= cases for time in times]) for cases in SEEN}
            middle = float(np.median([np.inf if time is None else time for time in times]))
            rows.append({"what": "right and stays right", "truth": str(kind), "median": f"at most {middle:g} cases"} | counts)
    return rows


def by_shift(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Each change: right with labels, alarmed, right without labels."""
    rows = []
    for title in dict.fromkeys(each.title for each in found):
        mine = [each for each in found if each.title == title]
        rows.append(
            {
                "what": "change",
                "truth": f"{title} ({mine[0].kind})",
                "share": share([each.said is each.kind for each in mine]),
                "alarmed": share([each.alarmed for each in mine]),
                "without labels": share([each.suspected is each.kind for each in mine]),
            }
        )
    return rows


def share(values: Sequence[bool]) -> float:
    """The share of true ones."""
    return sum(values) / max(len(values), 1)


if __name__ == "__main__":
    main()
