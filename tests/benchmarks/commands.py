"""How many commands lead to exactly the right tools, arguments or question: the rule planner, and the configured endpoint.

    python tests/benchmarks/commands.py [--quick] [--split dev|held_out] [--misses] [--json FILE]

Every command of `commands_data/commands.v1.jsonl` runs through the agents, the tools and the guardrails on a seeded database. It
is right when its tool calls are those of one expected reading, arguments included, or, where a slot is missing, when nothing is
called and something is asked. An order that was not asked for counts ten times. An endpoint is measured where
`RECLAIM_LLM_BASE_URL` names one. `--misses` prints what came instead.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench_report import Target, at_least, at_most, finish
from commands_bench.latency import added_latency
from commands_bench.scoring import Command, Score, read_set, score
from commands_bench.world import StandingClock, world

from agents.runner import Runner
from schemas.settings import LlmSettings, Settings

WRONG_ORDER: Final = 10
"""What an order that was not asked for costs, in commands."""


def main() -> None:
    """Run the planners over the set, print the tables."""
    options = _options()
    chosen = [each for each in read_set() if options.split in {"all", each.split}]
    chosen = chosen[::10] if options.quick else chosen
    settings = Settings()
    planners = {"rules": settings.model_copy(update={"llm": LlmSettings(base_url="")})}
    if settings.llm.base_url:
        planners[settings.llm.model or "endpoint"] = settings
    results = {name: _scores(chosen, each) for name, each in planners.items()}
    rows = [row for name, scores in results.items() for row in _rows(name, scores)]
    if not settings.llm.base_url:
        rows.append({"planner": "endpoint", "family": "all", "note": "no endpoint is configured (RECLAIM_LLM_BASE_URL)"})
    if options.misses:
        _print_misses(results)
    delay = added_latency(5 if options.quick else 40)
    rows.append(delay)
    finish("commands", rows, _targets(results["rules"], delay), options.json, f"{len(chosen)} commands, split {options.split}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every tenth command")
    parser.add_argument("--split", choices=("all", "dev", "held_out"), default="all", help="only one half of the set")
    parser.add_argument("--misses", action="store_true", help="print each command that was not served as expected")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def _scores(commands: list[Command], settings: Settings) -> list[Score]:
    with ExitStack() as stack:
        worlds = {kind: stack.enter_context(world(kind)) for kind in sorted({each.world for each in commands})}
        runners = {kind: Runner.of(database, StandingClock(), settings) for kind, database in worlds.items()}
        return [score(each, worlds[each.world], runners[each.world]) for each in commands]


def _rows(planner: str, scores: list[Score]) -> list[dict[str, Any]]:
    families = dict.fromkeys(each.command.family for each in scores)
    groups = {name: [each for each in scores if each.command.family == name] for name in families}
    groups |= {name: [each for each in scores if each.command.split == name] for name in ("dev", "held_out")}
    groups |= {"German and French": [each for each in scores if each.command.language != "en"], "all": scores}
    return [_row(planner, name, group) for name, group in groups.items() if group]


def _row(planner: str, family: str, scores: list[Score]) -> dict[str, Any]:
    right, wrong = sum(each.right for each in scores), sum(each.wrong_orders for each in scores)
    fell_back = sum(each.planner.startswith("rules (after") for each in scores)
    return {
        "planner": planner,
        "family": family,
        "commands": len(scores),
        "right": right,
        "share": round(right / len(scores), 4),
        "wrong orders": wrong,
        "score": round((right - WRONG_ORDER * wrong) / len(scores), 4),
        "fell back": fell_back,
    }


def _targets(scores: list[Score], delay: dict[str, Any]) -> list[Target]:
    every = _row("rules", "all", scores)
    return [
        at_least("share of commands served exactly, rule planner", every["share"], 0.97),
        at_most("orders that were not asked for, rule planner", every["wrong orders"], 0),
        at_most("milliseconds of the layer per step, median", delay["layer_ms_median"], 50),
        at_most("milliseconds of the layer per step, 95th percentile", delay["layer_ms_p95"], 50),
    ]


def _print_misses(results: dict[str, list[Score]]) -> None:
    for planner, scores in results.items():
        for each in scores:
            if not each.right:
                said = replace(each.command)
                print(f"{planner} {said.id} {'WRONG ORDER ' if each.wrong_orders else ''}{said.text!r}")
                print(f"    calls {[(tool, _short(arguments)) for tool, arguments in each.calls]}\n    says {each.reply[:160]!r}")
    print()


def _short(arguments: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: value for name, value in arguments if value not in {"none", "", "[]", "10", "5", "false", "paired"}}


if __name__ == "__main__":
    main()
