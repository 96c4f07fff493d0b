"""What a person may say, as data: intents with their phrases, words that turn an order into a question, slots.

Phrases are patterns over folded text in which every model name has been replaced by `@model`. Intents stand in the order
in which they are tried; the first that fits a clause is its meaning. Order intents fit only commands: a question, a
negation or a condition about an order is answered, never carried out.
"""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Intent:
    """One meaning. `tool` is the tool that serves it, `instead` the one that answers a question about the order."""

    tool: str
    phrases: tuple[re.Pattern[str], ...]
    order: bool = False
    model: bool = True
    instead: str = ""


def _any(*phrases: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(phrase) for phrase in phrases)


_TUNING = r"(?:fine-?\s?tun(?:e|ing)|finetun(?:e|ing)|retrain(?:ing)?|training|remedy|repair|run|job)"
_HOW = r"(?:partial|full|gradual|head[ -]only|parameter[ -]efficient|complete)"
_FORMER = r"(?:previous|last|old|earlier|former|prior)"
_STOP = r"stop|pause|halt|suspend|disable|deactivate"
_LABELS = r"(?:labels?|labell?ed|labell?ing|annotations?|ground truth)"
_WRITE = r"(?:write|create|generate|produce|prepare|draft|compile)"
_MAKE = r"(?:write|document|make|create|generate|produce|prepare|send|draft|order|issue|compile|need|want|like|give|get|do|request)"
_TARGET = r"(?:serving|scoring|using|service|predicting|inference|model|classifier|@model|it)"
_ABOUT_OTHERS = r"(?!.*\b(?:reports?|labels?|messages?|emails?|talking|asking|orders?)\b)"

CANNOT: Final = "cannot"
"""Not a tool: work that the agents have no tool for, whatever else the words may look like."""
CANCEL_RUN: Final = "cancel_run"
"""Not a tool: stopping a run that has begun cannot be ordered."""

INTENTS: Final[tuple[Intent, ...]] = (
    Intent(
        CANNOT,
        _any(
            r"^(?:please |now |then )*(?:delete|erase|drop|wipe|e ?-? ?mail|mail|fax|print|forward|upload|download|export)\b",
            r"\b(?:make|get|turn|keep)\b.*\b(?:100 ?%|perfect|flawless|infallible|error ?-? ?free|always right)",
            r"^(?:please |now |then )*(?:guarantee|promise|ensure|make sure)\b",
        ),
        model=False,
    ),
    Intent(CANCEL_RUN, _any(rf"\b(?:stop|cancel|abort|kill|pause|halt|interrupt)\b.*\b{_TUNING}\b"), model=False),
    Intent(
        "approve_order",
        _any(
            r"\b(?:approve|confirm|accept|authori[sz]e|sign off)\b(?!.*\b(?:report|labels?)\b)",
            r"\bgo ahead\b",
            r"\bmy approval\b",
            r"\brelease\b.*\border\b",
            r"\b(?:thumbs up|green light|go for|fine with|ok for|ok to|yes to|yes for)\b.*\bord-",
        ),
        order=True,
        model=False,
        instead="list_orders",
    ),
    Intent(
        "reject_order",
        _any(
            r"\b(?:reject|deny|refuse|cancel|veto|withdraw|dismiss)\b",
            r"\bturn\b.*\bdown\b",
            r"\b(?:thumbs down|red light)\b.*\bord-",
            r"\bdecline\b.*\b(?:orders?|ord-[0-9a-f]+|remedy|proposal)\b",
        ),
        order=True,
        model=False,
        instead="list_orders",
    ),
    Intent(
        "order_rollback",
        _any(
            r"\broll?(?:ing)?[ -]?back\b|^(?:please )?roll\b.*\bback\b",
            r"\b(?:put|bring|set|take|turn|move|get)\b.*\bback (?:to|on|at|in)\b.*\b(?:v|version )\s*\d",
            r"\b(?:want|put|bring|let)\b.*\bversion \d+\b.*\b(?:again|back)\b",
            r"\bundo\b.*\b(?:update|promotion|change|version|@model)\b",
            r"\b(?:switch|go|change)\b.*\bback to (?:v|version )\s*\d",
            r"\b(?:revert|restore|reinstate)\b.*\b(?:version|champion|model|@model|it)\b",
            rf"\b(?:go|switch|change|put|bring|return)\b.*\b{_FORMER}\b.*\b(?:version|champion|model|one)\b",
        ),
        order=True,
        instead="list_orders",
    ),
    Intent(
        "order_resume_serving",
        _any(
            rf"\b(?:resume|restart|reactivate|unpause|re-?enable|reenable)\b{_ABOUT_OTHERS}",
            r"\blet\b.*\b(?:serve|score|work)\b.*\bagain\b",
            r"\b(?:get|set|keep)\b.*\b(?:going|running|serving|working)\b.*\bagain\b",
            r"\b(?:start|begin)\b.*\b(?:serving|scoring|using|service)\b",
            r"\b(?:put|bring|take|switch|turn)\b.*\b(?:back (?:online|on|into service|in service)|online again|on again)\b",
        ),
        order=True,
        instead="model_status",
    ),
    Intent(
        "order_stop_serving",
        _any(
            rf"\b(?:{_STOP}|shut (?:off|down)|switch off|turn off)\b{_ABOUT_OTHERS}.*\b{_TARGET}\b",
            rf"\b(?:shut|switch|turn)\b{_ABOUT_OTHERS}.*\b{_TARGET}\b.*\b(?:down|off)\b",
            rf"@model\b{_ABOUT_OTHERS}.*\b(?:off|offline|out of service)\b",
            rf"\btake\b{_ABOUT_OTHERS}.*\b(?:offline|out of service|off line)\b",
        ),
        order=True,
        instead="model_status",
    ),
    Intent(
        "order_label_request",
        _any(
            rf"\b(?:request|ask|get|need|order|want|collect|obtain)\b.*\b{_LABELS}\b",
            r"\blabel request\b",
            r"\b(?:label|annotate)\b.*\b(?:cases|studies|images|more)\b",
            r"^(?:please )?\d+ (?:more|new|additional|further) labels?\b",
        ),
        order=True,
        instead="model_status",
    ),
    Intent(
        "order_report",
        _any(
            rf"\b{_MAKE}\b(?!.*\b(?:latest|last|newest|existing|recent|previous)\b.*\breport\b).*\breport\b(?! that)",
            r"^(?:please )?report (?:on|about|for|of)\b",
            rf"\b{_WRITE}\b.*\breports\b(?! that)",
            r"\bwrite up\b.*@model",
            r"\breports? (?:on|about)\b.*\bnew ones?\b",
            r"\breport please\b",
            r"^(?:a )?report$",
        ),
        order=True,
        instead="list_reports",
    ),
    Intent(
        "replay_evaluation",
        _any(
            r"\b(?:re-?)?evaluate\b",
            r"\breplay\b",
            r"\b(?:start|run|launch|kick off|do|make|perform|trigger|order|need|want|begin|redo)\b.*\b(?:re-?)?evaluation\b",
            r"\b5 (?:%|percent) rule\b|\breclaim rule\b|\bcusum\b|\bpaired (?:rule|detector)\b",
            r"\b(?:test|check|score|assess|rate|judge|measure)\b.*@model.*\b(?:on|over|with|against|of)\b.*"
            r"\b(?:cases|scans|images|studies|station|patients)\b",
        ),
    ),
    Intent(
        "order_remedy",
        _any(
            r"\b(?:fine-?\s?tune|finetune|retrain|recalibrate|repair|remedy)\b",
            r"\b(?:re-?calibrate|calibrate|re-?threshold|harmoni[sz]e)\b",
            r"\bstandardi[sz]e\b.*\b(?:intensit(?:y|ies)|gr[ae]y[ -]levels?|histograms?)\b",
            r"\b(?:adjust|set|change|tune|move|reset|update|choose|refit|adapt|give|find)\b.*\bthresholds?\b",
            r"\b(?:adapt|refresh|update|re-?estimate|recompute)\b.*\b(?:statistics|batch ?norm)\b",
            rf"^(?:please )?(?:a |do )?{_HOW}\b.*\b(?:fine-?\s?tuning|training|retraining|retrain)\b",
            r"\bunfreez(?:e|ing)\b",
            r"\btune\b.*(?:@model|\bhead\b|\blayers?\b|\bnetwork\b)",
            r"\b(?:train|put|use|do|add|run|start|fit|make)\b.*\b(?:lora|adapters?)\b",
            rf"\buse\b.*\b{_TUNING}\b",
            rf"@model needs (?:a |an )?{_HOW}\b.*\b{_TUNING}\b",
            r"\b(?:want|need|like)\b.*@model.*\b(?:retrained|fine-?\s?tuned|recalibrated|repaired)\b",
            r"^(?:please )?update (?:the )?@model\b",
            r"\b(?:fix|improve|heal|train|adapt)\b(?!.*\b(?:feed|window|orientation|report)\b).*(?:@model|\bmodel\b|\bit\b|\bclassifier\b)",
            rf"\b(?:start|launch|begin|run|trigger|order|kick off|do|make|perform|need|want|request|schedule)\b.*\b{_TUNING}\b",
        ),
        order=True,
        instead="remedy_options",
    ),
    Intent(
        "help",
        _any(
            r"\bhelp\b",
            r"\bwhat (?:can|could|may|should) (?:you|i)\b(?!.*@model)",
            r"^(?:hi|hell?o|hey|good morning|good day)\b",
            r"\bcapabilities\b",
            r"\btalk to you\b",
            r"\bcommands\b",
        ),
        model=False,
    ),
    Intent(
        "compare_versions",
        _any(
            r"\bcompar(?:e|ed|ison|ing)\b",
            r"\bversus\b|\bvs\b",
            r"\bdifferences?\b.*\bbetween\b",
            r"\b(?:better|worse) than\b",
            r"\bside by side\b",
            r"\bnew(?:er)? version\b.*\bimprove",
            r"\b(?:better|worse|changed|improved)\b.*\bfrom (?:v|version )\s*\d+ to\b",
            r"\bwhich version\b.*\b(?:better|best)\b",
            r"\bbetter\b(?! or worse).*\bor\b",
            r"\b(?:v|version )\s*\d+\b.*\b(?:over|against|than|beside|better|worse)\b.*\b(?:v|version )\s*\d+\b",
        ),
    ),
    Intent(
        "list_orders",
        _any(
            r"\borders?\b",
            r"\b(?:approvals?|i need to approve)\b",
            r"\b(?:what|who|has|have|was|were)\b.*\bordered\b|\bwhat (?:did|have) you (?:do|done|order)\b",
            r"\b(?:waiting|pending|awaiting|waits?)\b.*\bapproval\b",
            r"\bon hold\b|\bsigns? off\b|\bsigned off\b",
            r"\bprogress\b",
            r"\b(?:under way|underway|in progress)\b",
            r"\b(?:what|anything|something)\b(?: is| s)? (?:waiting|running|pending)\b",
            r"\bhow far\b|\b(?:going on|up) with\b.*\b(?:fine-?\s?tuning|retraining)\b|\b(?:became|come) of\b",
            r"\b(?:fine-?\s?tuning|retraining|remedy|repair|run)\b.*\b(?:running|going on|done|finished|ready)\b",
            r"\b(?:rolled back|retrained|fine-?\s?tuned|approved|rejected|refused|accepted)\b",
        ),
        model=False,
    ),
    Intent(
        "drift_warnings",
        _any(
            r"\bdrift(?:s|ed|ing)?\b",
            r"\bearly warnings?\b",
            r"\bwithout (?:any )?labels?\b",
            r"\b(?:images?|scans?|scanners?|inputs?|data|pictures)\b.*\b(?:changed|different(?:ly)?|shift(?:ed|ing))\b",
            r"\bshift(?:s|ed|ing)\b",
            r"\b(?:shift|change|differ|move)(?:s|d|ed)?\b.*\b(?:images?|scans?|inputs?|data|pictures)\b",
        ),
    ),
    Intent(
        "explain_decline",
        _any(
            r"\bwhy\b",
            r"\bhow come\b",
            r"\b(?:done|undertaken) about\b.*\b(?:decline|fall|drop)\b",
            r"\bexplain\b",
            r"\breasons?\b",
            r"\bcauses?d?\b",
            r"\bwhat (?:happened|went wrong|is wrong|changed|is behind|lies behind)\b",
            r"\bdiagnos(?:is|e|ed)\b",
        ),
    ),
    Intent(
        "metric_history",
        _any(
            r"\btrends?\b",
            r"\bhistory\b",
            r"\bover time\b",
            r"\bevol(?:ve|ved|ution)\b",
            r"\bdevelop(?:ed|ment|s|ing)?\b",
            r"\b(?:course|progression) of\b",
            r"\bplot\b",
            r"\b(?:getting|become|becoming) (?:better|worse)\b",
            r"\bdeclining\b",
            r"\bhow has\b.*\bchanged\b",
            r"\bhow (?:did|has)\b.*\b(?:do|done|fare|fared|perform|performed)\b",
            r"\bcurve\b",
        ),
    ),
    Intent("list_evaluations", _any(r"\bevaluations?\b", r"\bbatches\b"), model=False),
    Intent("list_reports", _any(r"\breports?\b"), model=False),
    Intent(
        "list_models",
        _any(
            r"\b(?:which|what|list|show|all|every|name|registered|available)\b.*\b(?:models|classifiers)\b",
            r"^models$|\bmodels? list\b|\blist of models\b",
            r"\bmodels are\b",
            r"\boverview\b",
            r"^(?:please )?(?:show|list)(?: me)? (?:everything|all)$",
            r"^(?:so |and |hello |hi )?how (?:is|are|s) (?:things|everything|it all|we|all|all of them|they all)"
            r"(?: (?:doing|going|looking|standing|today|now|at the moment|right now|so far))*$",
            r"^(?:so |and )?what (?:is|s) (?:up|new|going on)(?: today| now)?$",
            r"^(?:so |and )?(?:how do|where do) (?:things|we) (?:stand|look)(?: today| now)?$",
        ),
        model=False,
    ),
    Intent(
        "remedy_options",
        _any(r"\b(?:options?|remedies|can be done|to do about|recommend|suggest)\b", r"\bhow many\b.*\b(?:labels?|cases)\b"),
    ),
    Intent(
        "model_status",
        _any(
            r"\bstatus\b|\bstate\b|\bhealth(?:y)?\b|\bperformance\b|\bmetrics?\b|\baccuracy\b|\baccurate\b|\bauroc\b|\bsensitivity\b|\brecall\b|\bdegraded\b|\bserving\b",
            r"\bhow (?:is|are|was|were|does|do|well|good|s)\b|\bwhat (?:is|s) (?:up|new|going on)\b",
            r"\bis\b.*\b(?:ok|okay|fine|good|working|well|bad|broken|reliable|in service|online)\b",
            r"\b(?:update|news) (?:on|from|of|about)\b|\bwhich version\b.*\bservice\b",
            r"\bdoing\b|\bperform(?:s|ing)?\b|\bworks?\b|\bnumbers\b|\bproblems?\b|\breliab(?:le|ility)\b|\btrust(?:ed|worthy)?\b",
        ),
    ),
)
BY_TOOL: Final[dict[str, Intent]] = {intent.tool: intent for intent in INTENTS}

NEGATION: Final = re.compile(
    r"\b(?:not|never|no|don t|dont|doesn t|didn t|shouldn t|won t|cannot|can t|without|avoid|instead of|rather than|nobody)\b"
)
CONDITION: Final = re.compile(
    r"\b(?:if|unless|in case|whenever|as soon as|once|until(?! further notice)|would|should|might|maybe|perhaps)\b"
    r"(?! you (?:please )?\w)|\bwhen\b"
)
QUESTION: Final = re.compile(
    r"^(?:so |and |but |ok |well )?(?:what|why|who|whom|whose|when|where|which|how|did|was|were|is|are|am|has|had|"
    r"have(?! (?:the )?(?:radiologists?|readers?|doctors?|someone|somebody)\b)|does|"
    r"do (?:you|we|i|they)|should|shall|may|might|"
    r"(?:can|could|would|will) (?:it|we|i|they|the|there|this|that|@model)|explain|tell me|show|list|describe)\b"
)
POLITE: Final = re.compile(
    r"^(?:please |now |ok |so |then |hi |hello )*(?:can|could|would|will) you\b"
    r"|^(?:please |now |ok |so )*(?:can|could|would|will) (?:the |our )?(?:radiologists?|readers?|doctors?|somebody|someone)\b"
    r"|\bi (?:would|d) like\b|\bi want\b|\bwould like (?:you )?to\b"
)
REPORTED: Final = re.compile(
    r"\b(?:said|says|say|wrote|writes|told|reads|claims?|claimed|recommend(?:s|ed)|suggest(?:s|ed)|according to|thinks?|thought|"
    r"quotes?|quoted|mentioned|insists?)\b"
)
"""Somebody else's words: what follows them in the sentence orders nothing."""
PAST: Final = re.compile(r"\b(?:was|were|been|has|had|got|being)\b")

SPLIT: Final = re.compile(r"(\s*(?:[;!?\n]+|\.(?=\s|$)|,)\s*|\s+(?:and then|then|and also|also|and|plus|but)\s+)")
QUOTED: Final = re.compile(
    r"(?s:```.*?```|~~~.*?~~~)|(?m:^\s*>[^\n]*$)|\"[^\"]*\"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|`[^`]*`|(?<!\w)'[^']*'(?!\w)"
)
ORDER_ID: Final = re.compile(r"\bord-[0-9a-f]{1,12}\b")
VERSION: Final = re.compile(
    r"\b(?:v|versions?\s*#?)\s*(\d{1,4})\b(?:\s*(?:and|with|vs|versus|to|against|or|,|&|-)\s*(?:v|version\s*)?(\d{1,4})\b)?"
)
BARE_PAIR: Final = re.compile(r"\b(\d{1,4}) (?:or|and|with|vs|versus|to|against) (\d{1,4})\b")
BARE_VERSION: Final = re.compile(r"\bto (\d{1,4})\b")
"""A version in a rollback without the word: `roll back brain to 1`."""
RUN_TOGETHER: Final = re.compile(r"\b(how|what|who|where)s\b")
PERCENT: Final = re.compile(r"(\d) ?(?:percent|per cent|prozent|pour ?cent)\b")
AS_IT_WAS: Final = re.compile(r"\b(?:how|as|where|what) (?:it|@model) (?:was|had been)\b")
"""A past state that is wanted back: no word about something that has happened."""
REASON: Final = re.compile(r"\b(?:because|due to|owing to)\b.*")
NEW: Final = re.compile(r"\bnew ones?\b")
THANKS: Final = re.compile(r"^(?:many )?(?:thanks|thank you|thx|cheers)\b[ .!]*(?:a lot|very much)?[ .!]*$")
YES: Final = re.compile(r"^(?:yes|yes please|yep|yeah|ok|okay|do it|go ahead|sure|please do)[ .!]*$")

_NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
INTEGER_SLOTS: Final[dict[str, tuple[re.Pattern[str], ...]]] = {
    "epochs": _any(r"\b(\d{1,9})\s*epochs?\b", r"\bepochs?\s*(?:=|:|of|to|at)?\s*(\d{1,9})\b"),
    "batch_size": _any(r"\bbatch[ _-]?size\s*(?:=|:|of|to)?\s*(\d{1,9})\b", r"\bbatch(?:es)? of (\d{1,9})\b"),
}
NUMBER_SLOTS: Final[dict[str, tuple[re.Pattern[str], ...]]] = {
    "head_learning_rate": _any(rf"\b(?:(?<!body )learning[ _-]?rate|(?<!body )lr)\s*(?:=|:|of|to)?\s*{_NUMBER}"),
    "body_learning_rate": _any(rf"(?<!head )\b(?:learning[ _-]?rate|lr)\s*(?:=|:|of|to)?\s*{_NUMBER}"),
    "rehearsal_share": _any(rf"\b{_NUMBER} ?% (?:of )?rehearsal\b", rf"\brehearsal(?: share)?\s*(?:=|:|of|to)?\s*{_NUMBER}"),
}
_CASES = r"(?:labell?ed )?(?:cases|studies|scans|images|patients|exams)"
_NEWEST = r"(?:last|latest|recent|past|newest|most recent)"
CASES: Final = _any(rf"\b{_NEWEST} (\d{{1,6}}) {_CASES}\b", rf"\b(\d{{1,6}}) {_NEWEST} {_CASES}\b")
RULES: Final[dict[str, re.Pattern[str]]] = {
    "cusum": re.compile(r"\bcusum\b"),
    "reclaim": re.compile(r"\b5 (?:%|percent)|\breclaim\b"),
    "paired": re.compile(r"\bpaired\b"),
}
GROUPS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"\b(?:women|woman|females?)\b"), "PatientSex=F"),
    (re.compile(r"\b(?:men|man|males?)\b"), "PatientSex=M"),
    (re.compile(r"\bstation(?: ?name)? ?(?:=|is|named)? ?((?!name)[a-z0-9][\w.-]*)"), "StationName={}"),
)
FACET: Final = re.compile(r"\b([a-z]{4,24}) ?= ?([\w.+-]+)")
"""NAME=VALUE as it is written in a command, for any facet."""
ONE: Final = re.compile(r"\b(?:last|latest|newest|most recent) (?:report|evaluation|order)\b")
"""A single newest thing: `the latest report`."""
COUNT: Final = _any(
    r"\b(?:last|latest|recent|past|newest|top)\s+(\d{1,6})\b",
    r"\b(\d{1,6})\s+(?:latest|last|newest|most recent)\b",
    r"\b(\d{1,3}) (?:reports|evaluations|orders)\b",
)
LABELS: Final = _any(
    r"\b(\d{1,6})\s*(?:more |new |additional |further |extra )*(?:labels?|labelled cases|cases|studies|annotations?)\b"
)
STRATEGIES: Final[dict[str, re.Pattern[str]]] = {
    "gradual": re.compile(r"\bgradual(?:ly)?\b|\blayer by layer\b|\bunfreez(?:e|ing)\b"),
    "parameter_efficient": re.compile(r"\blora\b|\badapters?\b|\bparameter[ -]efficient\b|\bpeft\b"),
    "harmonise": re.compile(
        r"\b(?:re-?)?harmoni[sz](?:e|ed|ing|ation)\b|\b(?:histogram|intensity|gr[ae]y[ -]levels?)\b.{0,20}\bstandardi[sz]"
        r"|\bstandardi[sz]\w* .{0,20}\b(?:intensit|histogram|gr[ae]y)"
    ),
    "adapt_statistics": re.compile(r"\bstatistics\b|\bbatch ?norm\b"),
    "recalibrate": re.compile(r"\b(?:re-?)?calibrat(?:e|ed|ion)\b"),
    "rethreshold": re.compile(r"\b(?:re-?)?thresholds?\b"),
    "head_only": re.compile(
        r"\bhead[ -]?only\b|\bonly the (?:head|last layer)\b|\blast layer\b|\bjust the head\b|\bhead alone\b|\bthe head\b"
    ),
    "partial": re.compile(r"\bpartial(?:ly)?\b|\brear part\b|\blast blocks?\b|\bfrozen front\b|\bupper layers\b"),
    "full": re.compile(
        r"\bfull(?:y)?\b|\bwhole (?:network|model|net)\b|\bcomplete(?:ly)?\b|\bentire(?:ly)?\b|\ball (?:the )?(?:layers|weights)\b"
    ),
}
ALL_MODELS: Final = re.compile(
    r"\b(?:all|every|each)\b.*\b(?:models?|classifiers?|of them)\b|\b(?:everything|anything|any problems?)\b"
)
PRONOUN: Final = re.compile(r"\b(?:it|its|this|that|same|the model|the classifier)\b")
WAITING: Final = re.compile(
    r"\b(?:on hold|sign(?:s|ed)? (?:it )?off|need to approve|waiting|pending|awaiting|waits?|approval|open)\b"
)
CONDITION_START: Final = re.compile(r"^(?:if|when|whenever|unless|once|in case|as soon as|should)\b")
"""A clause that makes the rest of its sentence conditional."""
SENTENCE_END: Final = re.compile(r"[.;!?\n]")
