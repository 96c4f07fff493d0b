"""From pieces to rows and targets. A row says how many test sets it rests on; what has not been run is not in it."""

from collections import defaultdict

import numpy as np
from bench_report import Target, at_most
from detector_bench.rules import RULES
from detector_bench.worlds import FALLS, FOLLOWED, SIZES, WORLDS, YEAR

BAR = {
    "one class -10": {30: (1110, 1080), 50: (800, 1050), 100: (1000, 1200), 200: (800, 1200), 500: (1000, 1500)},
    "one class -20": {30: (240, 270), 50: (200, 250), 100: (300, 300), 200: (200, 400), 500: (500, 500)},
    "one class -41": {30: (90, 90), 50: (100, 100), 100: (100, 100), 200: (200, 200), 500: (500, 500)},
    "all classes -3": {30: (930, 870), 50: (950, 900), 100: (1100, 1000), 200: (1000, 1000), 500: (1000, 1000)},
    "all classes -5": {30: (330, 300), 50: (350, 300), 100: (400, 400), 200: (400, 400), 500: (500, 500)},
    "all classes -10": {30: (90, 90), 50: (100, 100), 100: (100, 100), 200: (200, 200), 500: (500, 500)},
    "one class, 0.5 a batch": {30: (1020, 1020), 50: (1300, 1400), 100: (2300, 2400), 200: (3600, 3800), 500: (6000, 7000)},
    "all classes, 0.2 a batch": {30: (810, 780), 50: (1150, 1100), 100: (1900, 1800), 200: (3000, 3000), 500: (5500, 6000)},
    "one class -5": {200: (6200, 7200), 500: (3500, 5000)},
}
"""Acceptance medians, labelled cases (2 classes, 4 classes); met with at most 15 % or one batch more."""
LIMIT = 0.05
UPPER = 0.065
SETS = 240
"""Fresh test sets that the bar on false alarms wants; fewer are shown and not judged."""
DRAWS = 400
"""Bootstrap samples of the test sets."""
STREAMS = 160
"""Falling streams from which a median is judged: a quick run has 12 a cell."""


def gathered(found: dict) -> dict:
    """Blocks of the same cell put together: `own` and `falls` by (world, size)."""
    cells: dict = defaultdict(lambda: {"hits": [], "delays": defaultdict(list)})
    for name, piece in found.items():
        kind, world, *rest = name.split("|")
        if kind == "own":
            cells[world, int(rest[0])]["hits"] += (np.array(piece["hits"]) / piece["replicates"]).tolist()
        if kind == "falls":
            for fall, result in piece.items():
                cells[world, int(rest[0])]["delays"][fall] += result["delays"]
    return cells


def rows_of(found: dict) -> list[dict]:
    """One row a cell for ours, then the published rules, what stands beside an alarm, stress, lateness and the year's length."""
    cells = gathered(found)
    rows = [row for n in sorted(SIZES) for world in WORLDS if (row := _own_row(cells, world, n))]
    for name, piece in found.items():
        kind, *rest = name.split("|")
        rows += _PARTS.get(kind, lambda *_: [])(rest, piece)
    return rows + _side_by_side_rows(found)


def _own_row(cells, world, n):
    if (world, n) not in cells:
        return None
    cell = cells[world, n]
    row = {"rule": "ours, as deployed", "world": world, "batch": n, "test sets": len(cell["hits"])}
    years, half = _mean(cell["hits"])
    row |= {f"P(alarm) year {year + 1}": f"{years[year]:.3f} ± {half[year]:.3f}" for year in range(len(years))}
    return row | {fall: _median(delays, n) for fall, delays in cell["delays"].items()}


def _mean(hits):
    """Mean and half the width of its 95 % interval, over test sets."""
    table = np.array(hits)
    return table.mean(0), 1.96 * table.std(0, ddof=1) / np.sqrt(len(table))


def _median(delays, n) -> str:
    middle, year = np.median(delays), np.mean(np.array(delays) <= YEAR)
    cases = f"{int(middle * n)}" if middle <= FOLLOWED else ">2y"
    return cases if year >= 0.995 else f"{cases} ({year:.0%})"


def _peer_rows(rest, piece):
    world, n = rest[0], int(rest[1])
    rows, known = [], {rule.name: rule for rule in RULES}
    for name, cell in piece.items():
        alarms = [f"{years / cell['replicates']:.3f}" for years in cell["years"]]
        row = {"rule": name, "world": world, "batch": n, "test sets": cell["replicates"]}
        row |= {
            "P(alarm) year 1": alarms[0],
            "P(alarm) year 2": alarms[1],
            "alarmed batches a year": f"{cell['alarmed_batches']:.2g}",
        }
        row["note"] = f"as published; {known[name].source}"
        rows.append(row | {fall: _median(each[0], n) if each[0] else "alarmed before" for fall, each in cell["delays"].items()})
        tuned = {
            "rule": name,
            "world": world,
            "batch": n,
            "test sets": cell["replicates"],
            "note": f"limit raised to {cell['tuned']:.3g}",
        }
        rows.append(tuned | {fall: _median(each[1], n) for fall, each in cell["delays"].items()})
    missing = [rule for rule in RULES if rule.name not in piece]
    return rows + [{"rule": rule.name, "world": world, "batch": n, "note": "the test set is not two chunks"} for rule in missing]


def _variant_rows(rest, piece):
    """Mean delay over that of the detector as it is; the geometric mean over the falls that both were run on."""
    names = list(dict.fromkeys(name for fall in piece.values() for name in fall))
    rows = []
    for name in names[1:]:
        ratios = {fall: cell[name][0] / cell[names[0]][0] for fall, cell in piece.items() if name in cell}
        row = {"rule": f"variant: {name}", "world": rest[0], "batch": int(rest[1])}
        row["note"] = f"mean delay over the present one: {np.exp(np.mean(np.log(list(ratios.values())))):.2f}"
        rows.append(row | {fall: f"{ratio:.2f}" for fall, ratio in ratios.items()})
    return rows


def _told_rows(rest, piece):
    world, n = rest
    rows = []
    for fall, cell in piece.items():
        share = np.array(cell["covered"]) / max(cell["alarms"], 1)
        names = ("class right", "drop in its interval", "start in its interval")
        for place, when in enumerate(("at the alarm", "8 batches later")):
            values = {name: f"{value:.2f}" for name, value in zip(names, share[3 * place :], strict=False)}
            row = {"rule": f"evidence {when}", "world": world, "batch": int(n), "note": fall, "alarms": cell["alarms"]}
            rows.append(row | values)
    return rows


def _stress_rows(rest, piece):
    kind, world = rest[0], rest[1]
    return [_hits_row(f"{kind}: {way}", world, 100, hits, piece["replicates"]) for way, hits in piece["hits"].items()]


def _horizon_rows(rest, piece):
    world, per_year = rest
    return [_hits_row(f"{per_year} batches a year", world, 50, hits, piece["replicates"]) for hits in piece["hits"].values()]


def _hits_row(name, world, n, hits, replicates):
    mean, half = _mean(np.array(hits)[:, None] / replicates)
    return {"rule": name, "world": world, "batch": n, "test sets": len(hits), "P(alarm) year 1": f"{mean[0]:.3f} ± {half[0]:.3f}"}


def _label_rows(rest, piece):
    kind, world, fall, _ = rest
    rows = []
    for way, first in piece["first"].items():
        start = piece["start"]
        row = {"rule": f"labels {kind}: {way}", "world": world, "batch": 100, "test sets": len(first)}
        if fall:
            weeks = [week - start + 1 if week is not None else 999 for week in first if week is None or week >= start]
            told = f"median {np.median(weeks):.0f} weeks to the alarm" if weeks else "every stream alarmed before it"
            rows.append(row | {"note": f"{fall}: {told}"})
        else:
            rows.append(row | {"P(alarm) year 1": f"{np.mean([week is not None for week in first]):.3f}"})
    return rows


def _acceptance_rows(rest, piece):
    """The table's own rule and the deployed one on the streams of the acceptance table."""
    world, n = rest[0], int(rest[1])
    rows = []
    for name, cell in piece.items():
        years, half = _mean(cell["hits"])
        row = {"rule": f"{name}, on the acceptance table's streams", "world": world, "batch": n, "test sets": len(cell["hits"])}
        row |= {f"P(alarm) year {year + 1}": f"{years[year]:.3f} ± {half[year]:.3f}" for year in range(len(years))}
        rows.append(row | {fall: _median(np.concatenate(delays), n) for fall, delays in cell["delays"].items()})
    return rows


def _side_by_side_rows(found):
    """Medians of both rules over all blocks of other test sets, their ratio, and 95 % intervals by bootstrap of the test sets."""
    cells: dict = defaultdict(lambda: defaultdict(list))
    for name, piece in found.items():
        kind, world, *rest = name.split("|")
        if kind == "side by side":
            for fall in next(iter(piece.values()))["delays"]:
                cells[world, int(rest[0]), fall]["sets"] += zip(*(cell["delays"][fall] for cell in piece.values()), strict=True)
    return [_ratio_row(*key, cell["sets"]) for key, cell in cells.items()]


def _ratio_row(world, n, fall, sets):
    own, deployed = (np.array([_middle(sets, draw, rule) for draw in _draws(len(sets))]) * n for rule in (0, 1))
    told = [
        f"{values[0]:g} [{low:g}, {high:g}]"
        for values in (own, deployed, deployed / own)
        for low, high in [np.quantile(values[1:], (0.025, 0.975)).round(2)]
    ]
    names = ("the table's own rule", "as deployed", "ratio")
    return {"rule": "side by side", "world": world, "batch": n, "note": fall, "test sets": len(sets)} | dict(
        zip(names, told, strict=True)
    )


def _draws(sets):
    """The test sets themselves, then bootstrap samples of them."""
    return [np.arange(sets), *np.random.default_rng(sets).integers(0, sets, (DRAWS, sets))]


def _middle(sets, draw, rule):
    return np.median(np.concatenate([sets[line][rule] for line in draw]))


_PARTS = {
    "acceptance": _acceptance_rows,
    "variants": _variant_rows,
    "peers": _peer_rows,
    "told": _told_rows,
    "stress": _stress_rows,
    "horizon": _horizon_rows,
    "late labels": _label_rows,
}


def targets_of(found: dict) -> list[Target]:
    """The acceptance bar: false alarms of each year by cell and over all cells, and every median."""
    cells, targets, everything = gathered(found), [], []
    for n in sorted(SIZES):
        for place, world in enumerate(WORLDS):
            cell = cells.get((world, n))
            if cell is None:
                continue
            everything += cell["hits"]
            targets += _alarm_targets(f"{world}, batch {n}", cell["hits"]) if len(cell["hits"]) >= SETS else []
            targets += [
                _delay_target(world, n, fall, cell["delays"][fall], place) for fall in BAR if n in BAR[fall] and fall in FALLS
            ]
    own = _alarm_targets("all cells", everything) + [target for target in targets if target] if everything else []
    return own + _acceptance_target(found)


def _acceptance_target(found) -> list[Target]:
    """How many of the deployed rule's medians are over what is allowed on the very streams of the acceptance table."""
    medians = []
    for name, piece in found.items():
        kind, world, *rest = name.split("|")
        for fall, delays in piece["as deployed"]["delays"].items() if kind == "acceptance" else ():
            if int(rest[0]) in BAR[fall]:
                medians.append(np.median(np.concatenate(delays)) * int(rest[0]) > _allowed(world, int(rest[0]), fall))
    every = sum(2 * len(sizes) for sizes in BAR.values())
    over = int(sum(medians)) if len(medians) == every else None
    return [at_most(f"medians over the bar on the acceptance table's own streams, of {every}", over, 0)] if medians else []


def _allowed(world, n, fall) -> float:
    """15 % or one batch more than the acceptance table has."""
    bar = BAR[fall][n][list(WORLDS).index(world)]
    return max(1.15 * bar, bar + n)


def _alarm_targets(name, hits):
    mean, half = _mean(hits)
    found = []
    for year, (value, wide) in enumerate(zip(mean, half, strict=True), 1):
        enough = len(hits) >= SETS
        told = round(float(value), 4) if enough else None, round(float(value + wide), 4) if enough else None
        found.append(at_most(f"P(false alarm) year {year}, {name}, {len(hits)} test sets", told[0], LIMIT))
        found.append(at_most(f"its upper 95 % limit, year {year}, {name}", told[1], UPPER))
    return found


def _delay_target(world, n, fall, delays, place):
    value = float(np.median(delays) * n) if len(delays) >= STREAMS else None
    told = f"cases to alarm, {fall}, {world}, batch {n} (bar {BAR[fall][n][place]})"
    return at_most(told, value, round(_allowed(world, n, fall), 1))


def note(found: dict) -> str:
    """What the tables rest on."""
    return f"{len(found)} pieces. Delays in labelled cases from the first changed batch (share within a year where below 99.5 %)."
