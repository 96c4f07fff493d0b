"""What an embedding model would add to the rule planner: the nearest known commands for what the rules do not understand.

    python tests/benchmarks/commands_neighbours.py FOLDER [--set FILE] [--raw] [--neighbours K] [--misses] [--json FILE]

FOLDER holds the weights and the tokenizer of all-MiniLM-L6-v2. The parts `dev` and `held_out` are the known commands; `fresh` and
`fresh_2` are asked. A tool that reads is called with what the rules' code reads from the words; for an order only "did you mean" is
asked, so that a neighbour orders nothing. Right is what `commands.py` calls right. Letters alone are the control. To have the
fresh parts held out from the rules too, put a checkout of the rules before they were mended first on PYTHONPATH.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
from bench_report import finish
from commands_bench.neighbours import NONE, Embed, Near, labels_of, letters, masked, minilm, nearest
from commands_bench.scoring import SET, Command, Score, read_set, score
from commands_bench.world import StandingClock, world
from llama_index.core.bridge.pydantic import PrivateAttr

from agents.planner import commands
from agents.planner.choice import MEANINGS, ChoicePlanner, requests_of
from agents.planner.language import Request
from agents.planner.llm import RulePlanner
from agents.planner.transcript import Transcript
from agents.runner import Runner
from agents.tools.catalogue import BY_NAME
from schemas.settings import LlmSettings, Settings

KNOWN: Final = ("dev", "held_out")
ASKED: Final = ("fresh", "fresh_2")
LANGUAGES: Final = {"en": "English", "de": "German", "fr": "French"}
THRESHOLDS: Final = (0.0, 0.5, 0.6, 0.7, 0.8)
"""Cosines from which on a neighbour counts."""


class NeighbourPlanner(ChoicePlanner):
    """The rules, and what the neighbours say of a command that they do not understand."""

    _near: dict[str, Near] = PrivateAttr()

    def __init__(self, endpoint: RulePlanner, *, near: dict[str, Near]) -> None:
        super().__init__(endpoint)
        self._near = near

    async def _read(self, text: str, today: date | None, transcript: Transcript, known: Sequence[str]) -> list[Request]:
        understood = commands.understood(text, transcript, today)
        if understood or text not in self._near:
            return understood
        self._asked = True
        return _served(self._near[text].tool, text, known, today)


def _served(tool: str, text: str, known: Sequence[str], today: date | None) -> list[Request]:
    if tool == NONE:
        return []
    found = requests_of(json.dumps({"requests": [{"tool": tool}]}), text, known, today)
    if not BY_NAME[tool].orders:
        return found
    return [Request("", question=f"Did you mean: {MEANINGS[tool]}? I have ordered nothing.")]


@dataclass(frozen=True)
class Outcome:
    """A command as the rules serve it, as neighbours at any cosine serve it, and what the neighbours said."""

    rules: Score
    served: Score
    near: Near

    @property
    def command(self) -> Command:
        """What was asked."""
        return self.rules.command

    @property
    def silent(self) -> bool:
        """Whether the rules understood nothing, so that the neighbours were asked."""
        return self.served.planner != self.rules.planner

    def used(self, threshold: float) -> bool:
        """Whether the neighbours serve it: they know a tool, and one of them is near enough."""
        return self.silent and self.near.tool != NONE and self.near.cosine >= threshold

    @property
    def asks(self) -> bool:
        """Whether they would ask for an order."""
        return self.near.tool in BY_NAME and BY_NAME[self.near.tool].orders

    @property
    def fitting(self) -> bool:
        """Whether the tool is one of an expected reading."""
        return any(each["tool"] == self.near.tool for reading in self.command.expect for each in reading)

    def right(self, threshold: float) -> bool:
        """Whether it is served exactly; a question about an order that was not meant never is."""
        if not self.used(threshold):
            return self.rules.right
        return self.served.right and (not self.asks or self.fitting)


def main() -> None:
    """Score the rules, then the same with neighbours, for embeddings and for the control."""
    options = _options()
    every = read_set(options.set)
    bank = [each for each in every if each.split in KNOWN and labels_of(each)]
    asked = [each for each in every if each.split in ASKED]
    worded: Callable[[str], str] = masked if options.masked else str
    rules = _scores(asked, None)
    embed, cost = _loaded(options.folder, [worded(each.text) for each in asked])
    rows: list[dict[str, Any]] = []
    for way, turned in {"all-MiniLM-L6-v2": embed, "letters": letters([worded(each.text) for each in bank])}.items():
        near, share = _near(turned, bank, asked, worded, options.neighbours)
        outcomes = [Outcome(*each) for each in zip(rules, _scores(asked, near), near.values(), strict=True)]
        rows += [
            *_rows(way, outcomes),
            {"by": way, "commands": f"known, itself left out, {len(bank)}", "share of tools named": share},
        ]
        if options.misses:
            _print(way, outcomes)
    finish("commands_neighbours", [*rows, cost], [], options.json, f"{len(bank)} known commands, {options.neighbours} neighbours")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="weights and tokenizer of all-MiniLM-L6-v2")
    parser.add_argument("--set", type=Path, default=SET, help="the commands")
    parser.add_argument("--neighbours", type=int, default=3, help="how many of them vote")
    parser.add_argument("--raw", dest="masked", action="store_false", help="leave the models' names in the texts")
    parser.add_argument("--misses", action="store_true", help="print what the neighbours say where the rules understand nothing")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


def _near(
    embed: Embed, bank: list[Command], asked: list[Command], worded: Callable[[str], str], k: int
) -> tuple[dict[str, Near], float]:
    """What the neighbours say of each asked command, by text; and for how many known ones they name the tool, itself left out."""
    labels = [min(labels_of(each) - {NONE} or {NONE}) for each in bank]
    rows = embed([worded(each.text) for each in bank])
    new = nearest(embed([worded(each.text) for each in asked]), rows, labels, k=k)
    own = nearest(rows, rows, labels, k=k, itself=True)
    named = sum(near.tool in labels_of(each) for each, near in zip(bank, own, strict=True))
    return {each.text: found for each, found in zip(asked, new, strict=True)}, round(named / len(bank), 3)


def _scores(asked: list[Command], near: dict[str, Near] | None) -> list[Score]:
    llm = LlmSettings(base_url="", calls="choice")
    settings = Settings().model_copy(update={"llm": llm})
    with ExitStack() as stack:
        worlds = {kind: stack.enter_context(world(kind)) for kind in sorted({each.world for each in asked})}
        runners = {kind: Runner.of(base, StandingClock(), settings) for kind, base in worlds.items()}
        if near is not None:
            choose = partial(NeighbourPlanner, near=near)
            runners = {kind: replace(each, make_llm=RulePlanner, choose=choose) for kind, each in runners.items()}
        return [score(each, worlds[each.world], runners[each.world]) for each in asked]


def _rows(way: str, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    groups = {name: [each for each in outcomes if each.command.split == name] for name in ASKED}
    groups |= {name: [each for each in outcomes if each.command.language == code] for code, name in LANGUAGES.items()}
    groups["all"] = outcomes
    return [_row(way, name, group, at) for at in THRESHOLDS for name, group in groups.items()]


def _row(way: str, name: str, outcomes: list[Outcome], threshold: float) -> dict[str, Any]:
    used = [each for each in outcomes if each.used(threshold)]
    looks, questions = [each for each in used if not each.asks], [each for each in used if each.asks]
    right = sum(each.right(threshold) for each in outcomes)
    return {
        "by": way,
        "threshold": threshold,
        "commands": f"{name}, {len(outcomes)}",
        "rules right": sum(each.rules.right for each in outcomes),
        "right": right,
        "points": round(100 * (right - sum(each.rules.right for each in outcomes)) / len(outcomes), 1),
        "not understood": sum(each.silent for each in outcomes),
        "rightly": sum(each.silent and each.rules.right for each in outcomes),
        "look exact": sum(each.served.right for each in looks),
        "look of the right tool": sum(each.fitting and not each.served.right for each in looks),
        "wrong look": sum(not each.fitting and not each.served.right for each in looks),
        "right question": sum(each.fitting for each in questions),
        "wrong question": sum(not each.fitting for each in questions),
        "orders": sum(each.served.wrong_orders for each in used),
    }


def _loaded(folder: Path, texts: list[str]) -> tuple[Embed, dict[str, Any]]:
    """The embedding, and what it costs: libraries and weights in memory, and the time of one command after the other."""
    before, begun = _resident(), time.perf_counter()
    embed = minilm(folder)
    loaded = time.perf_counter()
    for text in texts:
        embed([text])
    spent = (time.perf_counter() - loaded) / len(texts)
    cost = {"seconds to load": round(loaded - begun, 2), "ms a command": round(1000 * spent, 1), "MiB": round(_resident() - before)}
    return embed, {"by": "cost"} | cost


def _resident() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def _print(way: str, outcomes: list[Outcome]) -> None:
    for each in outcomes:
        if each.silent:
            said = f"{each.command.id} {each.command.language} {each.command.text!r}"
            print(f"{way} {said}\n    {each.near.tool} {each.near.cosine:.2f} fits {each.fitting} right {each.served.right}")
            print(f"    calls {each.served.calls}")


if __name__ == "__main__":
    main()
