"""The words that the grammar knows, for typos and for telling a model's name from ordinary words."""

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYWORDS: Final = _words(
    """
    abort accept accuracy annotate annotation annotations approval approve auroc authorize batch batches begin body
    cancel capabilities cases cause caused champion change changed classifier classifiers compare comparison confirm
    create curve drift deactivate decline degraded deny describe diagnosis difference disable doing draft earlier entire epoch
    epochs evaluate evaluation evaluations evolution explain fine finetune finetuning fix former full generate ground halt
    happened head health healthy help history images improve inference issue label labelled labelling labels last latest
    launch layer layers learning list make metric metrics model models network offline online only order orders overview
    partial partially pause pending perform performance please prepare previous produce progress rate reactivate reason
    recalibrate rethreshold threshold thresholds statistics adapters lora gradual gradually unfreezing calibrate harmonise harmonize
    replay station subgroup warning warnings
    recall rehearsal reject remedies remedy repair report reports request restart restore resume retrain
    retraining revert roll rollback rolling rung running score scoring send sensitivity service serving share show start
    state status stop strategy studies study suggest suspend switch train training trend trends trigger truth tune
    tuning underway version versions versus waiting whole window withdraw works write wrong yes
    """
)
"""Words with a meaning in the grammar: what a typo may be corrected to, never a model's nickname."""

OF_ORDERS: Final = _words(
    """
    acceptable adapt adapter adjust another batchnorm blocks calibrated calibration choose collect complete confirmed days
    decision dismiss document efficient every examinations exams experts feedback fit formal fresh frozen front gray grey
    halted harmonisation harmonization heal histogram histograms improved intensities intensity kick layerwise levels logits
    love manner mode monthly needs net norm obtain ones overall paper parameter peft percent permanently
    probabilities probability promotion proper readers rear refit refresh refuse reinstate release retrained
    rol serve setting settings signed sign specified standardise standardize start system thumbs tune unfreeze unfreezing undo
    until update updated upper veto weekly weight weights wish written
    """
)
"""Words that orders may hold besides. Any other makes an order unclear, and an unclear order is not given."""

SHORT: Final = _words("trend drift list help")
"""Words of questions to which a typo of four letters may be corrected: none of them orders anything."""

STOPWORDS: Final = _words(
    """
    a about action additional after again ahead all also am an and any are as asap ask at back be been before being best
    better between big bit both brief bring but by can carefully check colleagues complete completely could currently d
    day days detailed did do doctor does done down during e each etc evening every everything extra few first for from
    fully further g gently get give go going good had has have hello here hey hi high him hospital how i id if
    immediately in instead into is it its just kindly know large let like little ll look lot lr m made many may maybe me
    might monitoring month months more morning most much must my need needed new next no not notice now number of off ok
    okay old on once one one's or other our out over own perhaps possible present priority proposal protocol put quick
    quickly radiologist radiologists rather re really right run s same scanner scanners second see set shall she short
    should size slowly small so some soon still sure t take team tell than thank thanks that the their them then there
    these they thing things this those time to today tomorrow too turn up urgent urgently us use used using value ve
    very via want was way we week well were what when where whether which while who why will with without worse would
    year yesterday yet you your
    """
)
"""Ordinary words that may stand in a request without being a model's name."""

NOT_TYPOS: Final = _words(
    """
    accepted acceptor activate activated advisable annotated append appended appending approved awaiting awards batched
    bending border borders calibrate calibrated calibrates cancelled cased catches chained charged classified clause
    cleaning clearing companion compared conference confirmed conform consume contain conversions crate created creative
    curved curves deactivated deactivates degenerate degrade depending detain different disabled dose eject ending endings
    entirety erosion exchange exchanged export exports finer form formerly graded happen hatches image import improved
    improvise inaccuracy inferences inversion issued launched lease matches modes notation notations observing opening
    patches patient patients pattern paused polling prepaid presume presumed pretraining previously produced progression
    progressive project propose proposed pruning rates recalibrated recreate regenerate rejected remaining removed
    repaired reparation repost reproduce requested requestor reranking resent resented resolution resort resorts
    restarted restored restrain resumed resumption retain retains retrained returning reverted rolls round runge scanner
    scorer scrolling sending series serious several shared shown shows sieving sorting spatial stain stated stats
    storing strain suspended sustain switched tends tissue trailing trial truthy turning unchanged valuation windows
    writes writing
    """
)
"""Ordinary words that look like a keyword's typo."""

SHORT_FORMS: Final[dict[str, str]] = {
    "hw": "how", "ovr": "over", "abt": "about", "pls": "please", "plz": "please", "wht": "what", "shw": "show", "lst": "list",
    "chk": "check", "evals": "evaluations", "eval": "evaluation", "acc": "accuracy",
}  # fmt: skip
"""Words as they are shortened in a chat."""

_TO_TWELVE = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBER_WORDS: Final[dict[str, str]] = {word: str(number) for number, word in enumerate(_TO_TWELVE, start=2)} | {
    "fifteen": "15",
    "twenty": "20",
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "hundred": "100",
}
