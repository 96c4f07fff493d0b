"""From free words to requests: clauses, intents, slots, and a question back where a slot is missing. Pure."""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Final

from agents import names
from agents.planner import dates, grammar, words
from agents.planner.foreign import to_english
from agents.planner.grammar import Intent
from agents.planner.slots import remedy_slots, slots_of

_TOKEN: Final = re.compile(r"@model|ord-[0-9a-f]+|[a-z]+|\d[\d.e-]*|\S")
_CLOSE: Final = 0.84
DECISIONS: Final = frozenset({"approve_order", "reject_order"})
WELCOME: Final = "You are welcome."
NO_TOOL: Final = "That is nothing I can do. I look after the models: ask for help to see what I can tell or order."
UNSURE: Final = "I have ordered nothing, because I do not understand {word!r} in it. Say plainly what to order, and nothing else."
NOT_ORDERED: Final = "I have ordered nothing: your words say what should not be done, or when. Say plainly what to order."


@dataclass(frozen=True)
class Request:
    """One thing a person asks for: a tool with its arguments, or a question back when something is missing."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    question: str = ""


@dataclass(frozen=True)
class _Clause:
    text: str
    intent: Intent | None
    question: bool
    models: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    hindered: bool = False


def parse(text: str, known: Sequence[str], earlier: Sequence[tuple[str, str]] = (), today: date | None = None) -> list[Request]:
    """All requests in a message, in order. `known` are the registered models, `earlier` the thread's (text, reply) pairs.

    `today` is the day on which it was said; without it no days are read.

    An answer to a question of ours is read together with the message that led to the question.
    """
    if grammar.THANKS.match(to_english(names.fold(text), ()).strip()):
        return [Request("", question=WELCOME)]
    requests = _parse(text, known, earlier, today)
    if requests:
        return requests
    return (_follow_up(text, known, earlier, today) if earlier else []) or _bare_names(text, known)


def pieces(text: str) -> list[str]:
    """The parts of a message that may each ask for something."""
    return [piece for piece in grammar.SPLIT.split(names.fold(text))[::2] if names.words(piece)]


def chosen(tool: str, said: str, text: str, known: Sequence[str], today: date | None) -> list[Request]:
    """A tool that something else than the rules chose for the words `said` of a text: slots and models are read from them.

    Where they name no model, the only one that the whole text names is meant; without one it is asked for.
    """
    folded, intent = _fold(said, known, today), grammar.BY_TOOL[tool]
    mention, anywhere = _mention(folded, known), _mention(_fold(text, known), known).names
    named = mention.names or (anywhere if len(anywhere) == 1 and not mention.unclear else ())
    if intent.model and not named:
        return [Request(tool, question=_which(_Clause(folded, intent, False, (), mention.unclear), known, ""))]
    return [Request(tool, slots_of(tool, folded, name)) for name in named or ("",)]


def _follow_up(text: str, known: Sequence[str], earlier: Sequence[tuple[str, str]], today: date | None) -> list[Request]:
    before, reply = earlier[-1]
    if grammar.YES.match(to_english(names.fold(text), ()).strip()):
        return _confirmed(reply)
    return _parse(f"{before.rstrip('?!. ')} {text}", known, earlier[:-1], today) if "?" in reply else []


def _bare_names(text: str, known: Sequence[str]) -> list[Request]:
    """A message that is nothing but a model's name asks for its status."""
    plain = " ".join(names.words(text))
    mention = _mention(plain, known)
    rest = _masked(plain, mention, known).replace("@model", " ")
    alone = not set(names.words(rest)) - words.STOPWORDS - words.KEYWORDS
    return [Request("model_status", {"model": name}) for name in mention.names] if alone else []


def _confirmed(reply: str) -> list[Request]:
    """A bare yes approves the one order that our last reply named, and nothing else."""
    named = set(re.findall(r"approve (ord-[0-9a-f]{12})\b", reply))
    return [Request("approve_order", {"order_id": named.pop()})] if len(named) == 1 else []


def _parse(text: str, known: Sequence[str], earlier: Sequence[tuple[str, str]], today: date | None) -> list[Request]:
    clauses = _clauses(text, known, today)
    models = _carry(clauses, known, earlier)
    found = [request for clause, named in zip(clauses, models, strict=True) for request in _requests(clause, named, known)]
    return list({(item.tool, str(item.arguments), item.question): item for item in found}.values())


def _clauses(text: str, known: Sequence[str], today: date | None) -> list[_Clause]:
    """Clauses that hold an intent; a piece without one belongs to the clause before it, or else to the one after it."""
    pieces = [*grammar.SPLIT.split(_fold(text, known, today)), ""]
    joined: list[_Clause] = []
    lead, hindered = "", False
    for piece, separator in zip(pieces[::2], pieces[1::2], strict=False):
        body = f"{lead}{piece}".strip()
        clause = _read(body, known, asked="?" in separator)
        if joined and not lead and _completes(joined[-1], clause):
            clause = replace(clause, intent=None)
        if joined and not lead and clause.intent is None and _another(joined[-1], clause):
            clause = replace(clause, intent=joined[-1].intent, question=joined[-1].question)
        if clause.intent is not None:
            joined, lead = [*joined, replace(clause, hindered=hindered)], ""
        elif joined and not lead:
            joined[-1] = _extended(joined[-1], body, known)
        else:
            lead = f"{body} and " if separator.strip() == "and" else f"{body} "
        hindered = _hinders(body, separator, before=hindered)
    return joined


def _extended(before: _Clause, body: str, known: Sequence[str]) -> _Clause:
    """The clause with a piece that has no meaning of its own.

    It keeps its meaning, unless the piece makes of a look at something the order of it (`reports on brain please, new ones`).
    """
    whole = _read(f"{before.text} and {body}", known, asked=before.question)
    ordered = whole.intent is not None and before.intent is not None and whole.intent.instead == before.intent.tool
    new = ordered and grammar.NEW.search(body) is not None
    return whole if new else replace(whole, intent=before.intent)


def _completes(before: _Clause, clause: _Clause) -> bool:
    """Whether a piece only says how much of a trend is wanted (`trend of brain, last 20 evaluations`)."""
    asked = before.intent is not None and before.intent.tool == "metric_history"
    listed = clause.intent is not None and clause.intent.tool == "list_evaluations"
    return (
        asked
        and listed
        and not clause.models
        and re.match(r"(?:over |of |for )?(?:the )?(?:last|past|latest)\b", clause.text) is not None
    )


def _another(before: _Clause, clause: _Clause) -> bool:
    """Whether a piece repeats the order before it for another model with settings of its own (`and knee fully with 10 epochs`)."""
    ordered = before.intent is not None and before.intent.order
    return ordered and bool(set(clause.models) - set(before.models)) and bool(remedy_slots(clause.text))


def _hinders(body: str, separator: str, *, before: bool) -> bool:
    """Whether a condition or a negation reaches past the separator into the next clause."""
    reported = bool(grammar.REPORTED.search(body))
    if grammar.SENTENCE_END.search(separator):
        return reported and body.rstrip().endswith(":")
    negated = bool(grammar.NEGATION.search(body)) and separator.strip() == "and"
    return before or negated or reported or bool(grammar.CONDITION_START.match(body))


def _fold(text: str, known: Sequence[str], today: date | None = None) -> str:
    folded = grammar.QUOTED.sub(lambda quote: _keep_names(quote.group(), known), names.fold(text).replace("\u2019", "'"))
    folded = to_english(folded, {word for name in known for word in names.words(name)})
    folded = re.sub(r"(\w)'(s|t|d|ll|re|ve|m)\b", r"\1 \2", folded)
    folded = grammar.RUN_TOGETHER.sub(r"\1 is", folded)
    folded = grammar.PERCENT.sub(r"\1 %", folded)
    plain = " ".join(_corrected(token, known) for token in re.findall(r"ord-[0-9a-f]+|[\w.-]*\w|[^\w\s]|\n", folded))
    plain = _joined(plain, {word for name in known for word in names.words(name)})
    return dates.marked(plain, today) if today else plain


def _joined(text: str, parts: Collection[str]) -> str:
    """The text with a part of a name in one word where it was written in two (`x-ray` of `chest_xray`)."""
    return re.sub(r"\b([a-z]+)[- ](?=([a-z]+)\b)", lambda pair: pair[1] if pair[1] + pair[2] in parts else pair[0], text)


def _keep_names(quote: str, known: Sequence[str]) -> str:
    """Quoted text is somebody else's words: it can name a model, it cannot give an order."""
    inner = quote[1:-1]
    return inner if names.exact(inner, known) else " "


def _corrected(token: str, known: Sequence[str]) -> str:
    if token in words.NUMBER_WORDS:
        return words.NUMBER_WORDS[token]
    if token in words.SHORT_FORMS:
        return words.SHORT_FORMS[token]
    listed = token in words.KEYWORDS or token in words.STOPWORDS or token in words.NOT_TYPOS
    if not token.isalpha() or len(token) < 4 or listed or any(token in names.words(name) for name in known):
        return token
    swapped = _unswapped(token)
    if swapped or len(token) < 5:
        return swapped or next(iter(difflib.get_close_matches(token, words.SHORT, 1, _CLOSE)), token)
    close = difflib.get_close_matches(token, words.KEYWORDS, 1, _CLOSE)
    return close[0] if close and not _is_form_of(token, close[0]) else token


def _unswapped(token: str) -> str:
    """The one word that two neighbouring letters the other way round make of it (`reprot`), empty where there is none."""
    swaps = {f"{token[:at]}{token[at + 1]}{token[at]}{token[at + 2 :]}" for at in range(len(token) - 1)}
    found = swaps & (words.KEYWORDS | words.STOPWORDS)
    return found.pop() if len(found) == 1 else ""


def _is_form_of(token: str, keyword: str) -> bool:
    """Whether a word is a keyword's inflection (`rejected`, `restarts`): it means something else and is no typo."""
    return token.startswith(keyword[:-1]) and token != keyword[:-1]


def _read(body: str, known: Sequence[str], *, asked: bool) -> _Clause:
    mention = _mention(body, known)
    text = _masked(body, mention, known)
    question = bool(grammar.QUESTION.search(text)) or (asked and not grammar.POLITE.search(text))
    intent = _intent(text)
    if intent is not None and intent.tool == "model_status" and dates.named(text):
        intent = grammar.BY_TOOL["metric_history"]
    return _Clause(body, intent, question, mention.names, mention.unclear)


def _mention(body: str, known: Sequence[str]) -> names.Mentioned:
    whole = names.mentioned(body, [name for name in known if names.exact_in(body, name)])
    return whole if whole.names else names.mentioned(_without_vocabulary(body), known)


def _without_vocabulary(body: str) -> str:
    kept = (token for token in _TOKEN.findall(body.replace("_", " ")) if token not in words.KEYWORDS | words.STOPWORDS)
    return " ".join(kept)


def _masked(body: str, mention: names.Mentioned, known: Sequence[str]) -> str:
    text = body
    for name in sorted(known, key=len, reverse=True):
        text = re.sub(r"\b" + r"[\W_]+".join(names.words(name)) + r"\b", "@model", text)
    meant = [*mention.names, *mention.unclear]
    outside = words.KEYWORDS | words.STOPWORDS
    tokens = (
        "@model" if token.isalnum() and token not in outside and any(names.matches(token, name) for name in meant) else token
        for token in text.split(" ")
    )
    return re.sub(r"@model(?:\s+@model)+", "@model", " ".join(tokens)).strip()


def _intent(text: str) -> Intent | None:
    return next((intent for intent in grammar.INTENTS if any(phrase.search(text) for phrase in intent.phrases)), None)


def _carry(clauses: Sequence[_Clause], known: Sequence[str], earlier: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Each clause's models: its own, else those of the clause before, else the only ones that the message or the thread names."""
    anywhere = sorted({name for clause in clauses for name in clause.models})
    last: tuple[str, ...] = tuple(anywhere) if len(anywhere) == 1 else ()
    carried = []
    for clause in clauses:
        last = clause.models or (() if clause.unclear else last)
        carried.append(last or _from_thread(clause, known, earlier))
    return carried


def _from_thread(clause: _Clause, known: Sequence[str], earlier: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    if clause.unclear or not grammar.PRONOUN.search(clause.text):
        return ()
    for text, _reply in reversed(earlier):
        named = _mention(names.fold(text), known).names
        if named:
            return named if len(named) == 1 else ()
    return ()


def _requests(clause: _Clause, models: tuple[str, ...], known: Sequence[str]) -> Iterator[Request]:
    intent = clause.intent
    if intent is None:
        return
    if intent.tool == grammar.CANNOT:
        yield Request("", question=NO_TOOL)
        return
    if intent.order and not _is_command(clause, known):
        forbidden = clause.hindered or grammar.NEGATION.search(clause.text)
        intent = None if forbidden else grammar.BY_TOOL[intent.instead]
        if intent is None:
            yield Request("", question=NOT_ORDERED)
            return
    unknown = _unexplained(clause, known) if intent.order and (models or not intent.model) else ""
    if unknown:
        yield Request("", question=UNSURE.format(word=unknown))
        return
    if not intent.model:
        pointing = intent.tool not in DECISIONS and grammar.PRONOUN.search(clause.text)
        named = clause.models or (models if pointing else ())
        yield from (Request(intent.tool, slots_of(intent.tool, clause.text, name)) for name in (named or ("",)))
        return
    yield from _for_models(intent, clause, models, known)


def _is_command(clause: _Clause, known: Sequence[str]) -> bool:
    text = _masked(clause.text, names.Mentioned(clause.models, clause.unclear), known)
    polite = bool(grammar.POLITE.search(text))
    text = grammar.AS_IT_WAS.sub(" ", grammar.POLITE.sub(" ", text))
    doubtful = (grammar.NEGATION, grammar.CONDITION, grammar.PAST, grammar.REPORTED)
    other_day = dates.named(text) and not (clause.intent is not None and clause.intent.tool == "order_report")
    return (
        not clause.hindered
        and not other_day
        and (polite or not clause.question)
        and not any(pattern.search(text) for pattern in doubtful)
    )


def _unexplained(clause: _Clause, known: Sequence[str]) -> str:
    """A word of an order that the grammar cannot explain; its reason, told after `because`, may hold any."""
    text = _masked(clause.text, names.Mentioned(clause.models, clause.unclear), known)
    text = grammar.REASON.sub(" ", text).replace("@model", " ")
    ours = {part for part in names.words(text) if any(names.matches(part, model) for model in clause.models)}
    return _stranger(re.sub(r"[a-z]+", lambda part: " " if part[0] in ours else part[0], text), order=True)


def _for_models(intent: Intent, clause: _Clause, models: tuple[str, ...], known: Sequence[str]) -> Iterator[Request]:
    chosen = models
    everything = not models and bool(grammar.ALL_MODELS.search(clause.text))
    if everything and intent.tool == "model_status":
        yield Request("list_models")
        return
    if intent.tool == "drift_warnings" and not models and not clause.unclear:
        everything = everything or bool(re.search(r"\bany\b", clause.text))
    if everything and intent.tool in {"order_report", "metric_history", "explain_decline", "drift_warnings"}:
        chosen = tuple(known)
    stranger = "" if clause.unclear or chosen else _stranger(clause.text, order=intent.order)
    if not chosen and len(known) == 1 and not stranger and not everything:
        chosen = (known[0],)
    if not chosen:
        yield Request(intent.tool, question=_which(clause, known, stranger))
    yield from (Request(intent.tool, slots_of(intent.tool, clause.text, name)) for name in chosen)


def _stranger(text: str, *, order: bool) -> str:
    """A word that may name a model we do not know. In an order any word that the grammar cannot explain is one."""
    tokens = [token for token in re.findall(r"[a-z][\w-]*", grammar.ORDER_ID.sub(" ", text)) if not re.fullmatch(r"v\d+", token)]
    explained = words.KEYWORDS | words.STOPWORDS | words.OF_ORDERS
    strange = [token for token in tokens if not set(re.findall(r"[a-z]+", token)) <= explained]
    if order:
        return strange[0] if strange else ""
    named = re.search(r"\b(?:the|model|of|for|is|about)\s+([a-z][\w-]*)(?:\s+(?:model|classifier)|\s*$)", text)
    return named.group(1) if named and named.group(1) in strange else next((token for token in strange if "_" in token), "")


def _which(clause: _Clause, known: Sequence[str], stranger: str) -> str:
    if not known:
        return "No model is registered yet."
    if clause.unclear:
        return f"Which model do you mean: {' or '.join(clause.unclear)}?"
    close = names.nearest(stranger, known) if stranger else []
    unknown = f"I know no model {stranger!r}. " if stranger else ""
    return f"{unknown}Which model do you mean: {', '.join(close or known)}?"
