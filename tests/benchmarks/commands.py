"""How many commands lead to exactly the right tools, arguments or question: the rule planner, and the configured endpoint.

    python tests/benchmarks/commands.py [--quick | --sample N] [--split dev|held_out|fresh|fresh_2] [--misses] [--json FILE]
        [--endpoint choice|alone|tools|auto] [--only endpoint]

Every command of `commands_data/commands.v2.jsonl` runs through the agents, the tools and the guardrails on a seeded database. It
is right when its tool calls are those of one expected reading, arguments included, or, where a slot is missing, when nothing is
called and something is asked. An order that was not asked for counts ten times. An endpoint is measured where
`RECLAIM_LLM_BASE_URL` names one, in the way of `--endpoint`: `choice`, `tools` and `auto` are the settings of `llm.calls`; `alone`
lets it choose for every command, without the rules before it. `--misses` prints what came instead.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from bench_report import Target, at_least, at_most, finish
from commands_bench.latency import added_latency
from commands_bench.scoring import Command, Score, read_set, score
from commands_bench.world import StandingClock, world

from agents.planner.choice import ChoicePlanner
from agents.runner import Runner
from schemas.settings import LlmSettings, Settings

WRONG_ORDER: Final = 10
"""What an order that was not asked for costs, in commands."""
SPLITS: Final = ("dev", "held_out", "fresh", "fresh_2")
WAYS: Final = ("choice", "alone", "tools", "auto")


def main() -> None:
    """Run the planners over the set, print the tables."""
    options = _options()
    chosen = _chosen(options)
    settings = Settings()
    rows, targets, found = [], [], {}
    if options.only != "endpoint":
        found["rules"] = _scores(chosen, settings.model_copy(update={"llm": LlmSettings(base_url="")}))
        targets += _targets(found["rules"])
    if settings.llm.base_url and options.only != "rules":
        name = f"{settings.llm.model or 'endpoint'}, {options.endpoint}"
        found[name] = _of_endpoint(chosen, settings, options.endpoint)
        targets.append(at_most(f"orders that were not asked for and took effect, {name}", _carried_out(found[name]), 0))
    elif not settings.llm.base_url:
        rows.append({"planner": "endpoint", "family": "all", "note": "no endpoint is configured (RECLAIM_LLM_BASE_URL)"})
    rows[:0] = [row for name, scores in found.items() for row in _rows(name, scores)]
    if options.misses:
        _print_misses(found)
    if options.only != "endpoint":
        delay = added_latency(5 if options.quick else 40)
        rows.append(delay)
        targets += _latency_targets(delay)
    finish("commands", rows, targets, options.json, f"{len(chosen)} commands, split {options.split}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every tenth command")
    parser.add_argument("--sample", type=int, default=0, help="so many commands, the families in turn")
    parser.add_argument("--split", choices=("all", *SPLITS), default="all", help="only one part of the set")
    parser.add_argument("--endpoint", choices=WAYS, default="choice", help="how the endpoint is asked")
    parser.add_argument("--only", choices=("rules", "endpoint"), help="leave the other out")
    parser.add_argument("--misses", action="store_true", help="print each command that was not served as expected")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Command]:
    commands = [each for each in read_set() if options.split in {"all", each.split}]
    if options.sample:
        return _sample(commands, options.sample)
    return commands[::10] if options.quick else commands


def _sample(commands: list[Command], size: int) -> list[Command]:
    """Families in turn, in each of them in the order of a hash."""
    families: dict[str, list[Command]] = defaultdict(list)
    for each in sorted(commands, key=lambda each: sha256(each.id.encode()).hexdigest()):
        families[each.family].append(each)
    ranked = [(rank, name, each) for name, group in families.items() for rank, each in enumerate(group)]
    return [each for _, _, each in sorted(ranked, key=lambda item: item[:2])][:size]


def _of_endpoint(commands: list[Command], settings: Settings, way: str) -> list[Score]:
    calls = "choice" if way == "alone" else way
    asked = settings.model_copy(update={"llm": settings.llm.model_copy(update={"calls": calls})})
    return _scores(commands, asked, partial(ChoicePlanner, rules_first=way != "alone"), tell=True)


def _scores(
    commands: list[Command], settings: Settings, choose: Callable[..., ChoicePlanner] = ChoicePlanner, *, tell: bool = False
) -> list[Score]:
    with ExitStack() as stack:
        worlds = {kind: stack.enter_context(world(kind)) for kind in sorted({each.world for each in commands})}
        runners = {kind: replace(Runner.of(base, StandingClock(), settings), choose=choose) for kind, base in worlds.items()}
        found = []
        for number, each in enumerate(commands, 1):
            found.append(score(each, worlds[each.world], runners[each.world]))
            if tell:
                sys.stderr.write(f"{number}/{len(commands)} {each.id} {found[-1].right} {found[-1].seconds:.1f} s\n")
        return found


def _rows(planner: str, scores: list[Score]) -> list[dict[str, Any]]:
    families = dict.fromkeys(each.command.family for each in scores)
    groups = {name: [each for each in scores if each.command.family == name] for name in families}
    groups |= {name: [each for each in scores if each.command.split == name] for name in SPLITS}
    groups |= {"German and French": [each for each in scores if each.command.language != "en"], "all": scores}
    return [_row(planner, name, group) for name, group in groups.items() if group]


def _row(planner: str, family: str, scores: list[Score]) -> dict[str, Any]:
    right, wrong = sum(each.right for each in scores), sum(each.wrong_orders for each in scores)
    fell_back = sum(each.planner.startswith("rules (after") for each in scores)
    row = {
        "planner": planner,
        "family": family,
        "commands": len(scores),
        "right": right,
        "share": round(right / len(scores), 4),
        "wrong orders": wrong,
        "of these carried out": _carried_out(scores),
        "score": round((right - WRONG_ORDER * wrong) / len(scores), 4),
        "asked back": sum(each.asked_back for each in scores),
        "fell back": fell_back,
    }
    return row if planner == "rules" else row | _use(scores)


def _use(scores: list[Score]) -> dict[str, Any]:
    """What the endpoint was used for: how often, how long, how many tokens, over the commands for which it was asked."""
    asked = [each for each in scores if each.usage.get("llm_calls")]
    if not asked:
        return {"endpoint asked": 0}
    seconds = sorted(each.seconds for each in asked)
    return {
        "endpoint asked": len(asked),
        "requests": sum(each.usage["llm_calls"] for each in asked),
        "seconds_median": round(statistics.median(seconds), 1),
        "seconds_p95": round(seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))], 1),
        "input tokens": round(statistics.mean(each.usage["input_tokens"] for each in asked)),
        "output tokens": round(statistics.mean(each.usage["output_tokens"] for each in asked)),
    }


def _carried_out(scores: list[Score]) -> int:
    return sum(each.carried_out for each in scores)


def _targets(scores: list[Score]) -> list[Target]:
    every = _row("rules", "all", scores)
    return [
        at_least("share of commands served exactly, rule planner", every["share"], 0.97),
        at_most("orders that were not asked for, rule planner", every["wrong orders"], 0),
    ]


def _latency_targets(delay: dict[str, Any]) -> list[Target]:
    return [
        at_most("milliseconds of the layer per step, median", delay["layer_ms_median"], 50),
        at_most("milliseconds of the layer per step, 95th percentile", delay["layer_ms_p95"], 50),
    ]


def _print_misses(results: dict[str, list[Score]]) -> None:
    for planner, scores in results.items():
        for each in scores:
            if not each.right:
                said = each.command
                mark = "CARRIED OUT " if each.carried_out else "WRONG ORDER " if each.wrong_orders else ""
                print(f"{planner} {said.id} {mark}{said.text!r}")
                print(f"    calls {[(tool, _short(arguments)) for tool, arguments in each.calls]}\n    says {each.reply[:160]!r}")
    print()


def _short(arguments: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: value for name, value in arguments if value not in {"none", "", "[]", "10", "5", "false", "paired"}}


if __name__ == "__main__":
    main()
