"""Sentences about an overview, the same on a terminal and in the chat."""

from agents.overview.facts import ModelState


def missing(model: ModelState) -> str:
    """How many labelled cases the first or next evaluation lacks, and what could give them."""
    found = model.outlook
    if found is None:
        return "no version is evaluated"
    which = "first" if found.first and not model.status else "next"
    has = f"{found.ready} of {found.needed} labelled cases for the {which} evaluation, {found.missing} missing"
    more = [f"about {found.labels} labels, as other patients' cases teach and judge repairs"] if found.missing else []
    more += [f"it begins with fewer on {found.closes_at:%F}"] if found.missing and found.closes_at is not None else []
    brackets = f" ({'; '.join(more)})" if more else ""
    waiting = f"{model.unlabelled} scored studies wait" if model.unlabelled > 1 else "1 scored study waits"
    return f"{has}{brackets}; {waiting if model.unlabelled else 'no scored study waits'} for a label"
