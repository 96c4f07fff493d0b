"""Simple German and French phrasing, put into the English that the grammar reads. Pure.

Frames first, because German and French put the parts of a verb around its object; then single words. What is left over is
a stranger to the grammar, and a stranger in an order is asked about: a sentence that is half understood orders nothing.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from agents.planner import words as english

_CLOSE: Final = 0.84
LOOKED_AT: Final = 40
"""Words of a message that are looked at for typos of a language: a long text costs no more than a short one."""
_WORD: Final = re.compile(r"[a-zß]+")
Frames = tuple[tuple[re.Pattern[str], str], ...]


@dataclass(frozen=True)
class Language:
    """A language: words that give it away, frames, and single words (empty: dropped)."""

    marks: frozenset[str]
    frames: Frames
    words: dict[str, str]


def to_english(text: str, names: Collection[str]) -> str:
    """Folded text with its frames and words in English where a word gives German or French away, else the text itself.

    `names` are words of registered names, which stay as they are.
    """
    found = set(_WORD.findall(text)) - set(names)
    for language in (GERMAN, FRENCH):
        if found & language.marks or _typos(found, language):
            return _translated(text, language, names)
    return text


def _typos(found: Collection[str], language: Language) -> bool:
    """Whether two words or more look like this language's longer words and like no English one: `schrieb enien Berciht`."""
    listed = english.KEYWORDS | english.STOPWORDS | english.NOT_TYPOS
    long = [word for word in found if len(word) >= 6 and word not in listed]
    return sum(bool(_nearest(word, language)) for word in sorted(long)[:LOOKED_AT]) >= 2


def _nearest(word: str, language: Language) -> str | None:
    # A slip of `schreibe` is likelier than the past that tells of somebody's words.
    said = {known for known, meaning in language.words.items() if meaning == "said"}
    vocabulary = [known for known in {*language.words, *language.marks} - said if len(known) >= 5]
    if any(difflib.get_close_matches(word, english.KEYWORDS, 1, _CLOSE)):
        return None
    return next(iter(difflib.get_close_matches(word, vocabulary, 1, _CLOSE)), None)


def _translated(text: str, language: Language, names: Collection[str]) -> str:
    def corrected(match: re.Match[str]) -> str:
        word = match.group()
        known = word in language.words or word in language.marks or word in names or len(word) < 5
        return word if known else _nearest(word, language) or word

    def worded(match: re.Match[str]) -> str:
        word = match.group()
        return word if word in names else language.words.get(word, word)

    result = _WORD.sub(corrected, text)
    for pattern, replacement in language.frames:
        result = pattern.sub(replacement, result)
    result = _WORD.sub(worded, result)
    return re.sub(r" +", " ", result).strip()


def _frames(*pairs: tuple[str, str]) -> Frames:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


def _words(**groups: str) -> dict[str, str]:
    """`english="deutsch1 deutsch2"` as a dictionary; underscores in the English are spaces, `_` alone drops the words."""
    return {word: name.replace("_", " ").strip() for name, listed in groups.items() for word in listed.split()}


_X: Final = r"(?P<x>[^.,;!?\n]*?)"
"""The object between the parts of a verb; it does not leave its clause."""

GERMAN: Final = Language(
    marks=_set(
        """
        wie geht warum wieso weshalb welche welches welcher zeige zeig liste schreib schreibe erstelle erstell
        bericht berichte modell modelle auftrag auftrage trainiere trainier nachtrainieren stoppe stopp halte
        schalte nimm setze rolle zuruck bitte vergleiche vergleich genehmige genehmigen bestatige lehne ablehnen
        hilfe kannst konnen konntest konnten ist wird wurde nicht kein keine keinen und oder fur von vom zum uber
        dem der den sollen sollten soll brauchen brauche mehr verlauf zustand wann wer wenn falls sobald starte
        aktiviere deaktiviere passiert verbessere repariere hallo danke lauft gesund epochen fordere frage letzten
        letzte letzter gibt mit einen eine ein es ihn ja warten wartet verwirf pausiere wiederherstellen ruckgangig
        stoppen anhalten abschalten ausschalten einschalten fortsetzen zuruckrollen zurucksetzen stelle stell setz
        geh gehe wechsle kehre anfordern gestoppt zuruckgerollt nachtrainiert genehmigt abgelehnt zuruckgesetzt
        angehalten seit auswertung auswertungen evaluiere werte falle fallen montag dienstag mittwoch donnerstag freitag
        ob uberlege kalibriere schwellenwerte schicht losche nicht nie woche monat starten zeig freigabe
        """
    ),
    frames=_frames(
        (r"\bwie geht(?: es|s)?\b(?: dem| der| den)?", "how is"),
        (r"\bwie (?:lauft|steht es um|steht|gut ist|macht sich)\b(?: das| dem| der)?", "how is"),
        (r"\bwie hat sich " + _X + r" (?:entwickelt|verandert)\b", r"how has \g<x> changed over time"),
        (r"\bwie weit ist\b", "how far is"),
        (r"\bwerte " + _X + r" aus\b", r"evaluate \g<x>"),
        (
            r"\bre-?kalibriere? "
            + _X
            + r" (?:neu|nach|erneut)\b|\bkalibriere? "
            + _X.replace("x", "y")
            + r" (?:neu|nach|erneut)\b",
            r"recalibrate \g<x>\g<y>",
        ),
        (r"\bpasse? " + _X + r" an\b", r"adjust \g<x>"),
        (r"\bnur die (?:letzte schicht|letzten schichten)\b", "only the last layer"),
        (r"\b(?:letzte|vergangene|vorige) woche\b", "last week"),
        (r"\b(?:letzten|vergangenen|vorigen) monat\b", "last month"),
        (r"\bdiese[rn]? woche\b", "this week"),
        (r"\bdiese[nm]? monat\b", "this month"),
        (r"\bgibt es drift\b", "is there any drift"),
        (r"\bwarum ist " + _X + r" (?:schlechter|schlecht) ?(?:geworden)?\b", r"why is \g<x> worse"),
        (r"\bwas ist (?:mit |bei )?" + _X + r" ?(?:passiert|geschehen|los)\b", r"what happened to \g<x>"),
        (r"\bwas kannst du\b|\bwas konnen sie\b|\bwas geht\b", "what can you do"),
        (r"\bwelche modelle gibt es\b", "which models are there"),
        (r"\bist " + _X + r" (?:noch )?(?:in ordnung|gesund|okay|ok|gut|kaputt)\b", r"is \g<x> ok"),
        (r"\bgibt es (?:probleme|schwierigkeiten) (?:mit|bei)\b", "any problems with"),
        (r"\b(?:was|welche (?:auftrage|auftrag)) (?:wartet|warten|ist offen|sind offen)\b", "which orders are waiting"),
        (r"\b(?:offene|wartende) auftrage\b", "which orders are waiting"),
        (
            r"\b(?:fordere|frage|frag|bitte um|bitte) " + _X + r" (?:labels|label|befunde) " + _X.replace("x", "y") + r" an\b",
            r"request \g<x> labels \g<y>",
        ),
        (r"\bschalte? " + _X + r" wieder (?:ein|an)\b", r"resume \g<x>"),
        (r"\bnimm " + _X + r" wieder in (?:betrieb|dienst|den dienst)\b", r"resume \g<x>"),
        (r"\bstarte " + _X + r" wieder\b", r"resume \g<x>"),
        (r"\bsetze " + _X + r" fort\b", r"resume \g<x>"),
        (r"\bschalte? " + _X + r" (?:ab|aus)\b", r"stop serving \g<x>"),
        (r"\bhalte " + _X + r" an\b", r"stop serving \g<x>"),
        (r"\bnimm " + _X + r" (?:aus dem (?:dienst|betrieb)|vom netz|offline)\b", r"stop serving \g<x>"),
        (r"\b(?P<x>[\w-]+) (?:stoppen|anhalten|abschalten|ausschalten|pausieren|deaktivieren)\b", r"stop \g<x>"),
        (r"\bstopp\b", "stoppe"),
        (
            r"\b(?:rolle?|setze?|stelle?|geh|gehe|wechsle|kehre) "
            + _X
            + r" ?(?:auf |zu |zur )?version (?P<v>\d+) (?P<z>[^.,;!?\n]*?)zuruck\b",
            r"roll back \g<x> \g<z> to version \g<v>",
        ),
        (
            r"\b(?:gehe?|wechsle|kehre|zuruck) (?:bitte )?(?:zuruck )?zur? (?:vorherigen|letzten|alten|fruheren) version\b",
            "roll back",
        ),
        (r"\b(?:rolle?|setze?|stelle?) " + _X + r" zuruck(?P<r>(?: auf version \d+)?)", r"roll back \g<x> \g<r>"),
        (r"\bzuruckrollen\b|\bzurucksetzen\b|\bzuruckrollen von\b", "roll back"),
        (r"\btrainiere? " + _X + r" (?:nach|neu|wieder|erneut)\b", r"retrain \g<x>"),
        (r"\bneu trainieren\b", "retrain"),
        (r"\blehne " + _X + r" ab\b", r"reject \g<x>"),
        (r"\bgib " + _X + r" frei\b", r"approve \g<x>"),
        (r"\bnur (?:den|der|mit dem)? ?kopf\b", "head only"),
        (r"\b(?:sollen|sollten|sollte|soll) (?:wir|ich|man)\b", "should we"),
        (r"\b(?:kannst|konntest|konnten|konnen|wurdest|wurden) (?:du|sie)\b", "could you"),
        (r"\b(?:bis|solange) nicht\b", "not until"),
    ),
    words=_words(
        _="das dem den der des die ein eine einem einen einer mal doch mir uns gerade denn schon auch es ihn sich noch",
        better="besser",
        than="als",
        said="sagt sagte schreibt schrieb meint meinte",
        and_="und",
        or_="oder",
        of="von vom",
        for_="fur",
        with_="mit",
        on="uber",
        to="zu zum zur auf",
        since="seit ab",
        evaluate="evaluiere werte",
        evaluation="auswertung",
        monday="montag",
        tuesday="dienstag",
        wednesday="mittwoch",
        thursday="donnerstag",
        friday="freitag",
        saturday="samstag",
        sunday="sonntag",
        january="januar",
        february="februar",
        march="marz",
        may="mai",
        june="juni",
        july="juli",
        october="oktober",
        december="dezember",
        yesterday="gestern",
        today="heute",
        cases="falle fallen",
        days="tage tagen",
        weeks="wochen",
        months="monate monaten",
        recalibrate="kalibriere rekalibriere",
        thresholds="schwellenwerte schwellwerte schwellen",
        layer="schicht schichten",
        delete="losche",
        start="starte starten",
        approval="freigabe",
        worried="uberlege",
        not_="nicht kein keine keinen nie niemals",
        without="ohne",
        if_="wenn falls ob",
        once="sobald",
        maybe="vielleicht",
        please="bitte",
        is_="ist",
        are="sind",
        was="war wurde wurden",
        has="hat",
        when="wann",
        who="wer",
        why="warum wieso weshalb",
        how="wie",
        what="was",
        which="welche welcher welches",
        now="jetzt",
        more="mehr weitere weiteren zusatzliche",
        need="brauche brauchen benotige benotigen",
        model="modell modells",
        models="modelle",
        version="version",
        versions="versionen",
        compare="vergleiche vergleich",
        show="zeige zeig liste",
        write="schreib schreibe erstelle erstell",
        report="bericht",
        reports="berichte berichten",
        orders="auftrag auftrage auftragen",
        evaluations="auswertungen",
        status="zustand stand",
        trend="verlauf entwicklung",
        last="letzten letzte letzter letztes",
        epochs="epochen epoche",
        learning_rate="lernrate",
        fully="vollstandig komplett ganz",
        partially="teilweise",
        retrain="trainiere trainier nachtrainieren nachtrainiere feintune",
        retrained="nachtrainiert",
        stop="stoppe stoppen anhalten abschalten ausschalten",
        pause="pausiere",
        disable="deaktiviere",
        stopped="gestoppt angehalten",
        rolled_back="zuruckgerollt zuruckgesetzt",
        request="anfordern",
        we="wir",
        i="ich",
        you="du sie",
        repair="repariere",
        improve="verbessere",
        approve="genehmige genehmigen bestatige freigeben",
        reject="ablehnen verwirf verwerfen",
        approved="genehmigt",
        rejected="abgelehnt",
        resume="aktiviere einschalten fortsetzen",
        explain="erklare erklar",
        happened="passiert geschehen",
        worse="schlechter",
        ok="gesund",
        ask_for="fordere frage",
        labels="label befunde",
        help="hilfe",
        hello="hallo moin servus",
        thanks="danke",
        yes="ja",
        no="nein",
        at_once="sofort",
        everything="alles",
        all="alle allen",
        waiting="warten wartet offen",
    ),
)

FRENCH: Final = Language(
    marks=_set(
        """
        pourquoi quels quelles quel quelle montre montrez ecris ecrivez redige rapport rapports modele modeles
        arrete arretez relance reprends entraine reentraine approuve rejette bonjour merci aide sont les des une et
        ou avec statut etat reviens revenez precedente demande demandez etiquettes ordres attente faut devrions si
        que depuis surveilles evalue lance lundi remets mets service completement recalibre derive
        liste pas va evolution derniers dernieres oui epoques arreter
        """
    ),
    frames=_frames(
        (r"\bcomment (?:va|vont|se porte|marche)\b(?: le modele| la| le)?", "how is"),
        (r"\bremets " + _X + r" en service\b", r"resume \g<x>"),
        (r"\bmets " + _X + r" hors service\b", r"stop serving \g<x>"),
        (r"\bquels modeles\b(?! (?:y a|existent|sont la))", "which models are"),
        (r"\by a[- ]t[- ]il une? derive\b", "is there any drift"),
        (r"\bcomment " + _X + r" (?:a[- ]t[- ]il|a[- ]t[- ]elle) evolue\b", r"trend of \g<x>"),
        (r"\bla semaine derniere\b", "last week"),
        (r"\bcette semaine\b", "this week"),
        (r"\bce mois(?:-ci)?\b", "this month"),
        (r"\b(?P<n>\d+) derniers? cas\b", r"last \g<n> cases"),
        (r"\b(?P<n>\d+) dernier(?:e?s)\b", r"last \g<n>"),
        (r"\b(?:a la )?version precedente\b", "previous version"),
        (r"\bpourquoi\b", "why is"),
        (r"\bqu(?:e|') ?s' ?est[- ]il passe (?:avec|pour)\b|\bque s'est-il passe\b", "what happened to"),
        (r"\bquels modeles (?:y a[- ]t[- ]il|existent|sont la)\b", "which models are there"),
        (r"\bquels ordres (?:sont )?(?:en attente|attendent)\b", "which orders are waiting"),
        (r"\b(?:que|qu'est-ce que) (?:peux|sais)[- ]tu\b(?: faire)?", "what can you do"),
        (r"\b(?:reviens|revenez|retourne) a la (?:version precedente|derniere version)\b", "roll back"),
        (r"\b(?:reviens|revenez|retourne) a la version (?P<v>\d+)(?P<z>[^.,;!?\n]*)", r"roll back \g<z> to version \g<v>"),
        (r"\b(?:re)?entraine(?:z)? " + _X + r" (?:a nouveau|encore)\b", r"retrain \g<x>"),
        (r"\bne " + _X + r" pas\b", r"do not \g<x>"),
        (r"\b(?:faut-il|faut il|devrions-nous|devrions nous)\b", "should we"),
        (r"\b(?:peux|pouvez|pourriez|pourrais)[- ](?:tu|vous)\b", "could you"),
        (r"\b(?:arrete|arretez)\b", "stop"),
        (r"\bs'il (?:te|vous) plait\b", "please"),
    ),
    words=_words(
        _="le la les l un une du des moi nous",
        said="dit ecrit",
        and_="et",
        or_="ou",
        of="de",
        on="sur",
        for_="pour",
        with_="avec",
        not_="pas jamais",
        if_="si",
        is_="est",
        are="sont",
        since="depuis",
        monday="lundi",
        tuesday="mardi",
        wednesday="mercredi",
        thursday="jeudi",
        friday="vendredi",
        january="janvier",
        february="fevrier",
        march="mars",
        april="avril",
        may="mai",
        june="juin",
        july="juillet",
        august="aout",
        september="septembre",
        october="octobre",
        november="novembre",
        december="decembre",
        yesterday="hier",
        cases="cas",
        evaluate="evalue evaluez",
        start="lance lancez",
        drift="derive",
        fully="completement entierement",
        recalibrate="recalibre recalibrez",
        go_back="reviens revenez",
        status="statut etat",
        model="modele",
        models="modeles",
        report="rapport",
        reports="rapports",
        write="ecris ecrivez redige",
        show="montre montrez",
        orders="ordres",
        labels="etiquettes",
        request="demande demandez",
        more="plus supplementaires",
        compare="comparez",
        retrain="reentraine entraine",
        approve="approuve approuvez",
        reject="rejette rejetez refuse refusez",
        resume="relance reprends",
        trend="evolution",
        last="derniers dernieres dernier derniere",
        epochs="epoques",
        help="aide",
        hello="bonjour",
        thanks="merci",
        yes="oui",
    ),
)
