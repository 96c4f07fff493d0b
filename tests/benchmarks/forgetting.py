"""Five repairs in a row while the data moves on: what each way still knows of every earlier distribution.

    python tests/benchmarks/forgetting.py [--quick | --full] [--data FOLDER] [--sets A,B] [--network NAME] [--seed N] [--json FILE]

Round r changes the images a little more (gamma and blur grow together); its fine-tuning cases teach the version of the round
before, without the cases of earlier rounds, as a site that keeps only its development data has it. After each round every
earlier distribution is measured again on the same held-out cases, class by class, against what was known when it was current;
they are the test part and the inference part, which teach nobody, because a point of a class's recall takes some hundred cases.
The published recipe starts from the same champion. The default takes a hundred seconds of one core.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_report import Target, arguments, at_most, finish
from remedy_bench import images, ways
from remedy_bench.ways import Effort
from scipy.ndimage import gaussian_filter

from models.bundle import LoadedModel
from models.remedies import repair
from schemas.vocabulary import Remedy

ROUNDS = 5


def drifted(pool: images.Pool, round_number: int) -> images.Pool:
    """The images of a round: darker by a power and softer by a blur that grow with it."""
    changed = np.stack(
        [gaussian_filter(image, 0.25 * round_number) for image in np.clip(pool.images, 0, 1) ** (1 + 0.25 * round_number)]
    )
    return images.Pool(changed.astype(np.float32), pool.labels)


def by_remedy(remedy: Remedy, *, search: bool) -> Callable[[LoadedModel, images.Protocol, images.Pool, Effort], LoadedModel]:
    """A rung of ours, with or without the search for penalty and interpolation."""

    def way(champion: LoadedModel, sets: images.Protocol, tune: images.Pool, effort: Effort) -> LoadedModel:
        made = repair(remedy, champion, ways.material(sets, tune, effort.seed), effort.repairing(search=search))
        training = {"choices": made.record, "changed": not made.unchanged}
        return replace(champion, module=made.module.cpu(), spec=made.spec, training=training)

    return way


def by_recipe(champion: LoadedModel, _: images.Protocol, tune: images.Pool, effort: Effort) -> LoadedModel:
    """The published recipe."""
    return ways.by_recipe(champion, tune, effort).model


WAYS = {
    "peer recipe": by_recipe,
    "harmonise": by_remedy(Remedy.HARMONISE, search=True),
    "partial, searched": by_remedy(Remedy.PARTIAL, search=True),
    "full, rehearsal alone": by_remedy(Remedy.FULL, search=False),
    "full, searched": by_remedy(Remedy.FULL, search=True),
}


def followed(name: str, champion: LoadedModel, sets: images.Protocol, effort: Effort, rounds: int) -> list[dict[str, Any]]:
    """One way over all rounds: a row per round, with the worst class's loss on each earlier distribution."""
    tests = [drifted(images.old_cases(sets), each) for each in range(rounds + 1)]
    tunes = np.array_split(np.random.default_rng([effort.seed, 4]).permutation(len(sets.finetune.labels)), rounds)
    versions, rows = [champion], list[dict[str, Any]]()
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        before = versions[-1]
        versions.append(WAYS[name](before, sets, drifted(sets.finetune.take(tunes[number - 1]), number), effort))
        seconds, changed = time.perf_counter() - started, versions[-1].training.get("changed", True)
        lost = [ways.forgotten(versions[each], versions[-1], tests[each]) for each in range(number)]
        rows.append(
            {
                "way": name,
                "round": number,
                "before": ways.points(ways.recall(before, tests[number])),
                "after": ways.points(ways.recall(versions[-1], tests[number])),
                "worst class lost, by distribution 0, 1, ...": ", ".join(
                    f"{max(loss.points for loss in each):.1f}" for each in lost
                ),
                "first distribution": ways.points(ways.recall(versions[-1], tests[0])),
                "its classes lost ± SE": ", ".join(f"{loss.points:.1f} ± {loss.error:.1f}" for loss in lost[0]),
                "changed": changed,
                "seconds": round(seconds, 1),
                "lost first": max(loss.points for loss in lost[0]),
            }
        )
    return rows


def targets_of(rows: list[dict[str, Any]], rounds: int) -> list[Target]:
    """The bars on ours, searched: one point after one round, two after five, in any class of the first distribution."""
    found = []
    for name in ("harmonise", "partial, searched", "full, searched"):
        own = {row["round"]: row["lost first"] for row in rows if row["way"] == name}
        found.append(at_most(f"{name}: old class lost after one round (points)", round(own[1], 2), 1.0))
        found.append(at_most(f"{name}: old class lost after {rounds} rounds (points)", round(own[rounds], 2), 2.0))
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(data=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--full", action="store_true", help="larger images, all cases; wants a GPU")
    parser.add_argument("--sets", help="of the material, separated by commas")
    parser.add_argument("--network", help="default: small, with --full resnet50")
    parser.add_argument("--seed", type=int, default=0, help="of the cases, the order of the rounds and the trainings")
    chosen = parser.parse_args()
    size, most, effort, rounds = 48, 2400, Effort(12, 8), ROUNDS
    if chosen.quick:
        size, most, effort, rounds = 48, 600, Effort(5, 2), 2
    elif chosen.full:
        size, most, effort = 112, 10_000, Effort(20, 10)
    effort = replace(effort, seed=chosen.seed)
    network = chosen.network or ("resnet50" if chosen.full else "small")
    names = chosen.sets.split(",") if chosen.sets else ["cxr_pneumonia_kermany"]
    started, rows = time.perf_counter(), list[dict[str, Any]]()
    targets: list[Target] = []
    for name in names:
        pool, classes = images.load(chosen.data, name, size, most, effort.seed)
        sets = images.split(pool, effort.seed)
        champion = ways.champion_of(images.spec_of(name, classes, network, size), sets, effort)
        found = [row for way in WAYS for row in followed(way, champion, sets, effort, rounds)]
        targets += targets_of(found, rounds)
        rows += [
            {"set": name, "network": network, **{key: value for key, value in row.items() if key != "lost first"}} for row in found
        ]
    wall = time.perf_counter() - started
    epochs = f"{effort.epochs} epochs from random weights, then {effort.tune_epochs} a round"
    note = f"{size} px, at most {most} images a set, {epochs}; {wall:.0f} s."
    finish("forgetting", rows, targets, chosen.json, note)


if __name__ == "__main__":
    main()
