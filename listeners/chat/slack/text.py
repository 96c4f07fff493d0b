"""Slack's markup, both ways: what a person typed as plain text, and plain text so that none of it is markup.

Source: Slack's "Formatting message text": &, < and > are the only characters that open markup in a message.
"""

import re
from typing import Any, Final

from listeners.chat.cards import Button, Card

MAX_SECTION: Final = 3_000
MAX_FIELD: Final = 2_000
MAX_HEADER: Final = 150
MAX_SECTIONS: Final = 4
APPROVE: Final = "reclaim_approve"
REJECT: Final = "reclaim_reject"
_MARKUP: Final = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")


def typed(text: str, bot_user: str = "") -> str:
    """What the person meant: without mentions of the bot, links and channels as their words, entities as characters."""

    def plain(found: "re.Match[str]") -> str:
        kind, target, label = found.group(1), found.group(2), found.group(3)
        if kind == "@":
            return "" if target == bot_user else label or "somebody"
        if kind == "!":
            return ""
        return label or target

    text = _MARKUP.sub(plain, text if bot_user else re.sub(r"^\s*<@\w+(\|[^>]*)?>", "", text))
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()


def escaped(text: str) -> str:
    """The text as itself: no mention (<!channel>, <@U…>), no link, no channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def message_of(card: Card) -> dict[str, Any]:
    """Arguments of chat.postMessage and chat.update for a card. Texts stand in plain_text objects, which have no markup."""
    notice = escaped(f"{card.title}: {card.text}" if card.title and card.text else card.title or card.text)
    quiet = {"unfurl_links": False, "unfurl_media": False, "parse": "none", "link_names": False, "mrkdwn": False}
    return {"text": notice[:MAX_SECTION], "blocks": _blocks(card), **quiet}


def _blocks(card: Card) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if card.title:
        blocks.append({"type": "header", "text": _plain(card.title, MAX_HEADER)})
    blocks.extend({"type": "section", "text": _plain(part, MAX_SECTION)} for part in _parts(card.text))
    if card.facts:
        fields = [_plain(f"{name}\n{value}", MAX_FIELD) for name, value in card.facts[:10]]
        blocks.append({"type": "section", "fields": fields})
    if card.link:
        address = re.sub(r"[<>|\s]", "", card.link).replace("&", "&amp;")
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": f"<{address}|Open the report>"}]})
    if card.buttons:
        blocks.append({"type": "actions", "elements": [_button(each) for each in card.buttons]})
    return blocks


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": text[:limit] or " ", "emoji": False}


def _parts(text: str) -> list[str]:
    """The text in pieces that a section holds; what does not fit into the last is left out with a mark."""
    pieces = [text[start : start + MAX_SECTION] for start in range(0, len(text), MAX_SECTION)]
    return pieces[:MAX_SECTIONS]


def _button(button: Button) -> dict[str, Any]:
    word = "Approve" if button.approve else "Reject"
    return {
        "type": "button",
        "action_id": APPROVE if button.approve else REJECT,
        "value": button.order_id,
        "style": "primary" if button.approve else "danger",
        "text": _plain(button.label, 75),
        "confirm": {
            "title": _plain(f"{word} this order?", 100),
            "text": _plain(f"{word} {button.order_id}", 300),
            "confirm": _plain(word, 30),
            "deny": _plain("Not now", 30),
        },
    }
