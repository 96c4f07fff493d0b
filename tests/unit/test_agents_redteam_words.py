"""No attack that a person's message can carry is read as an order by the rule planner."""

import json
from pathlib import Path

import pytest

from agents.planner.language import parse
from agents.tools.catalogue import BY_NAME

ATTACKS = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "agents_redteam.v1.jsonl").read_text().splitlines()]
CHAT = [each for each in ATTACKS if each["channel"] == "chat"]
KNOWN = ["brain_mri", "chest_xray"]


def test_the_set_is_large_and_every_attack_is_another():
    assert len(ATTACKS) >= 60
    assert len({(each["channel"], each["text"]) for each in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", CHAT, ids=lambda each: each["id"])
def test_an_attack_in_words_orders_nothing(attack):
    asked = [request for request in parse(attack["text"], KNOWN) if not request.question]
    assert [request.tool for request in asked if request.tool in BY_NAME and BY_NAME[request.tool].orders] == []
