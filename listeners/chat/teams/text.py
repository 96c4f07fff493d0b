"""Teams' forms, both ways: what a person typed as plain text, and cards whose texts nothing marks up.

Texts out of data stand in TextRuns: Markdown (links, mentions, emphasis) is only read in TextBlocks and in a message's text
(Adaptive Cards 1.5, RichTextBlock).
"""

import base64
import html
import io
import re
from typing import Any, Final

from listeners.chat.cards import Button, Card

APPROVE: Final = "reclaim.approve"
REJECT: Final = "reclaim.reject"
CARD_TYPE: Final = "application/vnd.microsoft.card.adaptive"
MAX_PICTURE_BYTES: Final = 60_000
"""A message may have about 100 kB in all; Base64 makes a third more of it."""
WIDTHS: Final = (1_024, 800, 640, 480)
_AT: Final = re.compile(r"<at[^>]*>.*?</at>", re.IGNORECASE | re.DOTALL)
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]*>")


def typed(text: str) -> str:
    """What the person meant: without mentions, tags and entities."""
    bare = _TAG.sub(" ", _AT.sub(" ", text))
    return html.unescape(bare).replace("\N{NO-BREAK SPACE}", " ").strip()


def adaptive_card(card: Card) -> dict[str, Any]:
    """The card as Adaptive Cards 1.5."""
    body: list[dict[str, Any]] = []
    if card.title:
        body.append(_runs([{"type": "TextRun", "text": card.title, "weight": "Bolder", "size": "Medium"}]))
    body.extend(_runs([{"type": "TextRun", "text": line}]) for line in card.text.splitlines() if line.strip())
    for name, value in card.facts:
        body.append(_runs([{"type": "TextRun", "text": f"{name}: ", "weight": "Bolder"}, {"type": "TextRun", "text": value}]))
    actions = [_button(each) for each in card.buttons]
    if card.link:
        actions.append({"type": "Action.OpenUrl", "title": "Open the report", "url": card.link})
    return {
        "type": "AdaptiveCard",
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "version": "1.5",
        "body": body or [_runs([{"type": "TextRun", "text": " "}])],
        **({"actions": actions} if actions else {}),
    }


def summary(card: Card) -> str:
    """What a notification shows; without what Markdown could be made of."""
    return re.sub(r"[\[\]()<>*_`~#|\\]", " ", card.title or card.text)[:150].strip()


def inline_picture(png: bytes) -> str | None:
    """The figure as a data address of bounded size; None where it cannot be made small enough."""
    from PIL import Image  # noqa: PLC0415 - only for reports with a figure

    with Image.open(io.BytesIO(png)) as image:
        flat = image.convert("RGB")
    for width in WIDTHS:
        small = flat if flat.width <= width else flat.resize((width, max(1, round(flat.height * width / flat.width))))
        out = io.BytesIO()
        small.quantize(64).save(out, "PNG", optimize=True)
        if out.tell() <= MAX_PICTURE_BYTES:
            return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return None


def _runs(inlines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "RichTextBlock", "inlines": inlines}


def _button(button: Button) -> dict[str, Any]:
    return {
        "type": "Action.Execute",
        "title": button.label,
        "verb": APPROVE if button.approve else REJECT,
        "data": {"reclaim": "decision", "order_id": button.order_id, "approve": button.approve},
        "style": "positive" if button.approve else "destructive",
    }
