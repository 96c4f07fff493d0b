"""NannyML's and Evidently's own alarms in a stable world, as installed, beside what is re-implemented of them for the tables.

    python tests/benchmarks/peer_packages.py nannyml [--streams N] [--json FILE]
    python tests/benchmarks/peer_packages.py evidently [--streams N] [--json FILE]

Two classes, batches of 100 (docs/benchmarks/detector.md), all settings left at their defaults. Neither package is a dependency
of this project: install one into a folder of its own and name that in PYTHONPATH. Telemetry is switched off.
"""

import os
import time
import warnings

import numpy as np
from bench_report import arguments, finish
from detector_bench.rules import evidently as evidently_rule
from detector_bench.rules import nannyml as nannyml_rule
from detector_bench.worlds import TWO, YEAR, streams, test_sets

os.environ.update({"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"})
warnings.filterwarnings("ignore")
SIZE = 100
QUARTER = 13


def cases(confusion, generator):
    """Truth and prediction of each case; the weak class is the positive one."""
    cells = np.repeat(np.arange(4), confusion.ravel())
    generator.shuffle(cells)
    return 1 - cells // 2, 1 - cells % 2


def nannyml(base, stream, generator):
    """[batches, metrics] alerts of realised performance by size-based chunks: 3 standard deviations of the reference's."""
    import nannyml as package
    import pandas as pd

    package.disable_usage_logging()

    def frame(parts):
        truth, said = (np.concatenate(column) for column in zip(*parts, strict=True))
        return pd.DataFrame({"truth": truth, "said": said, "score": said.astype(float)})

    metrics = ["accuracy", "precision", "recall", "f1"]
    owner = package.PerformanceCalculator(
        y_true="truth", y_pred="said", y_pred_proba="score", problem_type="classification_binary", metrics=metrics, chunk_size=SIZE
    )
    owner.fit(frame([cases(base, generator)]))
    found = owner.calculate(frame([cases(part, generator) for part in stream])).filter(period="analysis").to_df()
    return np.stack([found[name, "alert"].to_numpy(bool) for name in metrics], 1), metrics


def evidently(base, stream, generator):
    """[batches, tests] failed tests of the classification preset with a reference: within 20 % of each of its metrics."""
    import pandas as pd
    from evidently import BinaryClassification, DataDefinition, Dataset, Report
    from evidently.presets import ClassificationPreset

    kinds = DataDefinition(classification=[BinaryClassification(target="truth", prediction_labels="said")])

    def data(confusion):
        truth, said = cases(confusion, generator)
        return Dataset.from_pandas(pd.DataFrame({"truth": truth, "said": said}), data_definition=kinds)

    reference, rows, names = data(base), [], []
    for part in stream:
        tests = Report([ClassificationPreset()], include_tests=True).run(data(part), reference).dict()["tests"]
        names = [test["name"].split(" metric")[0] for test in tests]
        rows.append([str(test["status"]).endswith("FAIL") for test in tests])
    return np.array(rows), names


RUNS = {"nannyml": (nannyml, nannyml_rule, 3.0, 2 * YEAR), "evidently": (evidently, evidently_rule, 0.20, QUARTER)}


def main() -> None:
    """Stable streams through the package and through the re-implementation."""
    parser = arguments("the alarms of NannyML and Evidently as installed")
    parser.add_argument("package", choices=RUNS)
    parser.add_argument("--streams", type=int, default=20)
    options = parser.parse_args()
    run, rule, limit, batches = RUNS[options.package]
    generator, alerts, ours, names = np.random.default_rng(20261121), [], [], []
    started = time.process_time()
    for number in range(2 if options.quick else options.streams):
        base, stream = test_sets(TWO, 1, generator)[0], streams([TWO] * batches, SIZE, 1, generator)[0]
        found, names = run(base, stream, np.random.default_rng(number))
        alerts.append(found)
        ours.append(rule(base[None], stream[None], SIZE)[0] > limit)
    found, again = np.stack(alerts), np.stack(ours)
    row = {"rule": options.package, "streams": len(found), "batches each": batches}
    row |= {"streams with an alarm": f"{found.any((1, 2)).mean():.2f}", "batches with an alarm": f"{found.any(2).mean():.3f}"}
    row |= {f"by {name}": f"{share:.3f}" for name, share in zip(names, found.mean((0, 1)), strict=True)}
    row |= {"re-implemented: streams": f"{again.any(1).mean():.2f}", "re-implemented: batches": f"{again.mean():.3f}"}
    finish("peer_packages", [row], [], options.json, f"{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
