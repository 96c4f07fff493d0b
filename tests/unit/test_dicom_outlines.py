"""What is remembered of a sender's last objects saves time and changes nothing: not one value, not one refusal."""

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.assembly import headers, structure
from services.assembly import outlines as module
from services.assembly.headers import Memory, MissingElement, UnreadableHeader, read_facts
from services.assembly.outlines import MOST_MISSES, MOST_OUTLINES, Common, Outlines
from services.assembly.sources import BrokenStructureError, FileSource
from services.assembly.structure import check_structure

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.70"
WANTED = frozenset({0x00080016, 0x00080018, 0x00080060, 0x0020000D, 0x0020000E})
UIDS = {0x00080016: b"1.2.84", 0x0020000D: b"1.2.44", 0x0020000E: b"1.2.55"}
LONG = ("OB", "OW", "SQ", "UN", "UT")


def element(tag, vr, value, undefined=False):
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    length = 0xFFFFFFFF if undefined else len(value)
    return head + struct.pack("<2xL" if vr in LONG else "<H", length) + value


def item(content, undefined):
    if not undefined:
        return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
    return struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)


def sequence(tag, items):
    return element(tag, "SQ", b"".join(items) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), undefined=True)


def an_object(instance=b"1.2.33", *, series=b"1.2.55", number=b"1 ", kilovolts=b"120 ", references=1, private=True, pixels=400):
    """`references` None leaves the sequence out."""
    uids = [element(0x00081155, "UI", b"1.2.%d" % (1000 + each)) for each in range(references or 0)]
    items = None if references is None else [item(uid, undefined=bool(each % 2)) for each, uid in enumerate(uids)]
    return b"".join(
        (
            element(0x00080016, "UI", b"1.2.84"),
            element(0x00080018, "UI", instance),
            element(0x00080060, "CS", b"CT"),
            sequence(0x00081140, items) if items is not None else b"",
            element(0x00180060, "DS", kilovolts),
            element(0x0020000D, "UI", b"1.2.44"),
            element(0x0020000E, "UI", series),
            element(0x00200013, "IS", number),
            element(0x00291010, "OB", b"private!") if private else b"",
            element(0x00280010, "US", b"\1\0"),
            element(0x7FE00010, "OW", bytes(pixels)),
        )
    )


def outcome(data, syntax=EXPLICIT, **memory):
    """The values, or what was at fault."""
    try:
        return check_structure(data, syntax, WANTED, 0x0020, **memory)
    except BrokenStructureError as error:
        return str(error), error.tag


objects = st.builds(
    an_object,
    st.sampled_from([b"1.2.33", b"1.2.34", b"1.2.3333"]),
    series=st.sampled_from([b"1.2.55", b"1.2.5666"]),
    number=st.sampled_from([b"1 ", b"10", b"1000"]),
    kilovolts=st.sampled_from([b"", b"120 ", b"x" * 30]),
    references=st.none() | st.integers(0, 3),
    private=st.booleans(),
    pixels=st.sampled_from([0, 2, 400, 20_000]),
)


@settings(max_examples=200)
@given(st.lists(objects, min_size=1, max_size=12), st.data())
def test_every_object_means_what_it_means_without_memory(several, data):
    outlines = Outlines(WANTED)
    for each in several:
        changed = bytearray(each)
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, min(len(changed), 500) - 1))
            if data.draw(st.booleans()):
                changed[at] = data.draw(st.sampled_from([0, 1, 0xFF, 0xFE, ord("S"), ord("Q"), changed[at] ^ 1]))
            else:
                del changed[at:]
                break
        assert outcome(bytes(changed), outlines=outlines) == outcome(bytes(changed))


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_bytes_mean_the_same(several):
    outlines = Outlines(WANTED)
    outcome(an_object(), outlines=outlines)
    for each in several:
        for data in (each, an_object() + each, an_object()[: len(each)] + each):
            assert outcome(data, outlines=outlines) == outcome(data)


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG])
def test_other_encodings_are_left_alone(syntax):
    outlines = Outlines(WANTED)
    data = struct.pack("<HHL", 0x0008, 0x0018, 6) + b"1.2.33" if syntax == IMPLICIT else b"\0\x08\0\x18UI\0\x061.2.33"
    assert outcome(data, syntax, outlines=outlines) == {0x00080018: b"1.2.33"}
    assert outlines._outlines == []


def steps_of(data, outlines, monkeypatch):
    """Up to where the object was recognized, None where it was not; nothing where there was nothing to compare with."""
    ordinary, seen = module._Outline.compare, []
    monkeypatch.setattr(module._Outline, "compare", lambda *arguments: seen.append(ordinary(*arguments)) or seen[-1])
    outcome(data, outlines=outlines)
    monkeypatch.undo()
    return [recalled and recalled.position for recalled in seen][-1:]


def test_a_series_is_recognized_once_its_changing_lengths_are_known(monkeypatch):
    outlines = Outlines(WANTED)
    pixels = len(element(0x7FE00010, "OW", bytes(400)))
    assert steps_of(an_object(), outlines, monkeypatch) == []
    same = an_object(b"1.2.34", number=b"2 ")
    assert steps_of(same, outlines, monkeypatch) == [len(same) - pixels]
    longer = an_object(b"1.2.3333", references=3, number=b"1000")
    assert steps_of(longer, outlines, monkeypatch) == [None]
    for each in (an_object(), longer, an_object(b"1.2.3", references=2, number=b"10")):
        assert steps_of(each, outlines, monkeypatch) == [len(each) - pixels]
    assert len(outlines._outlines) == 1


@settings(max_examples=150)
@given(st.lists(st.tuples(objects, st.integers(0, 2)), min_size=1, max_size=12))
def test_what_associations_share_changes_nothing_either(several):
    common = Common()
    associations = [Outlines(WANTED, common) for _ in range(3)]
    for each, which in several:
        assert outcome(each, outlines=associations[which]) == outcome(each)
        assert len(common.outlines) <= MOST_OUTLINES


def test_another_association_of_the_sender_need_not_learn(monkeypatch):
    common = Common()
    outcome(an_object(), outlines=Outlines(WANTED, common))
    second = Outlines(WANTED, common)
    monkeypatch.setattr(second, "learn", lambda *_: pytest.fail("learnt again"))
    for each in (an_object(b"1.2.34"), an_object(b"1.2.35", number=b"2 ")):
        assert outcome(each, outlines=second) == outcome(each)
    assert second._outlines == list(common.outlines)


def test_what_is_remembered_is_bounded():
    outlines = Outlines(WANTED)
    for number in range(MOST_MISSES):
        outcome(element(0x00091001 + number, "LO", b"x ") + an_object(), outlines=outlines)
        assert len(outlines._outlines) <= MOST_OUTLINES
    outcome(element(0x00090001, "LO", b"x ") + an_object(), outlines=outlines)
    assert outlines._outlines == []


def test_a_broken_object_is_not_learnt_from():
    outlines = Outlines(WANTED)
    for broken in (an_object()[:-1], sequence(0x00081140, [b"no item!"]) + an_object(), b""):
        with pytest.raises(BrokenStructureError):
            check_structure(broken, EXPLICIT, WANTED, 0x0020, outlines)
    assert outlines._outlines == []


def test_fragments_behind_an_outline_are_walked():
    outlines = Outlines(WANTED)
    head = an_object(pixels=0)[:-12]
    fragments = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, 6) + b"pixels"
    whole = head + element(0x7FE00010, "OB", fragments + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), undefined=True)
    for _ in range(2):
        assert outcome(whole, JPEG, outlines=outlines) == outcome(whole, JPEG)
        assert outcome(whole[:-3], JPEG, outlines=outlines) == outcome(whole[:-3], JPEG)
    assert len(outlines._outlines) == 1


def test_a_later_element_of_the_index_is_refused_behind_an_outline_too():
    outlines = Outlines(WANTED)
    outcome(an_object(), outlines=outlines)
    late = an_object() + element(0x0020000E, "UI", b"1.2.66")
    assert "repeated" in outcome(late, outlines=outlines)[0]


@settings(max_examples=150)
@given(st.lists(st.tuples(objects, st.sampled_from([None, 0x00080018, 0x0020000D])), min_size=1, max_size=8))
def test_facts_are_the_same_with_and_without_memory(several):
    memory = Memory()
    for data, spoilt in several:
        if spoilt is not None:
            start = data.index(struct.pack("<HH", spoilt >> 16, spoilt & 0xFFFF)) + 8
            data = data[:start] + b"x" + data[start + 1 :]  # noqa: PLW2901 - no UID any more
        assert facts(data, memory) == facts(data, None)


def test_series_in_turn_are_each_known_and_not_too_many(monkeypatch):
    memory = Memory()
    several = [an_object(instance=b"1.2.%d" % (100 + turn), series=b"1.2.%d" % (500 + turn % 5)) for turn in range(30)]
    for data in several[:10]:
        facts(data, memory)
    monkeypatch.setattr(headers, "facts_of", lambda _: pytest.fail("the series is known"))
    assert [facts(data, memory).series_uid for data in several[10:]] == [f"1.2.{500 + turn % 5}" for turn in range(10, 30)]
    monkeypatch.undo()
    for turn in range(60):
        assert facts(an_object(series=b"1.2.%d" % (600 + turn)), memory).series_uid == f"1.2.{600 + turn}"
        assert len(memory._facts) <= headers.MOST_SERIES


def facts(data, memory):
    file = os.memfd_create("object")
    os.write(file, data)
    try:
        return read_facts(FileSource(file, 0, len(data), data[:16_384]), EXPLICIT, memory)
    except UnreadableHeader:
        return None
    except MissingElement as error:
        return error.tag
    finally:
        os.close(file)


@pytest.mark.parametrize("behind", [b"", b"\0", element(0xFFFCFFFC, "OB", b"\0\0"), element(0x7FE00010, "OW", b"\0\0")])
def test_a_whole_object_is_recognized_by_its_end(behind, monkeypatch):
    memory, whole = Memory(), an_object(references=None)
    for number in range(3):
        assert facts(an_object(b"1.2.%d" % number, references=None), memory) == facts(
            an_object(b"1.2.%d" % number, references=None), None
        )
    monkeypatch.setattr(structure, "_Walker", lambda *_: pytest.fail("walked"))
    assert facts(an_object(b"1.2.9", references=None), memory).sop_instance_uid == "1.2.9"
    monkeypatch.undo()
    assert facts(whole + behind, memory) == facts(whole + behind, None)
    assert facts(whole[:-1] + behind, memory) == facts(whole[:-1] + behind, None)
