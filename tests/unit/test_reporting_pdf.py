"""The PDF says what the HTML says, on numbered pages with whole tables, and is the same for the same facts."""

import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from services.reporting.drawing import drawn
from services.reporting.page import KeyFigure, Page, Part, Picture, Section, Table
from services.reporting.pdf import pdf
from services.reporting.pdf_text import markup, split_long
from services.reporting.render import render
from tests.reporting_world import pdf_text

AS_OF = datetime(2026, 3, 9, 6, 0, tzinfo=UTC)
HASH = "0123456789abcdef" * 4


def picture(name="chart", height=3.0):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, height), dpi=60)
    figure.subplots().plot([0, 1])
    return Picture(name, f"Title of {name}", f"Alt of {name}", f"Caption of {name}.", drawn(figure))


def page(*sections, **values):
    parts = (Part("In short", sections or (Section("What happened", ("Nothing <b>bold</b> & plain.",)),), "A note."),)
    known = {
        "report_id": "20260309-0011223344556677",
        "kind": "routine",
        "status": "healthy",
        "status_word": "Healthy",
        "title": "lung, version 1: healthy",
        "summary": "All is well. Nothing to do.",
        "model": "lung",
        "task": "pneumonia",
        "version": 1,
        "as_of": AS_OF,
        "key_figures": [KeyFigure("Accuracy", "91.0 %", "test set: 92.0 %")],
        "parts": parts,
        "data": {},
    }
    return Page(**(known | values))


def made(*sections, **values):
    return pdf(page(*sections, **values), "routine", "9 March 2026, 06:00 UTC")


def test_the_metadata_come_from_the_facts():
    reader = PdfReader(io.BytesIO(made()))
    assert reader.metadata.title == "lung, version 1: healthy"
    assert reader.metadata.subject == "All is well. Nothing to do."
    assert reader.metadata.creation_date == AS_OF
    assert reader.metadata.modification_date == AS_OF
    assert reader.trailer["/Root"]["/Lang"] == "en"
    assert [each.title for each in reader.outline if not isinstance(each, list)] == ["In short"]


def test_the_same_facts_give_the_same_bytes():
    section = Section("S", ("P.",), ("•",), (picture(),), (Table("T", ("A", "B"), [("1", "2")]),))
    assert made(section) == made(section)
    assert made(section) != made(replace(section, paragraphs=("Q.",)))


def test_every_page_has_its_number():
    rows = [(f"row {number}", f"value {number}", "x") for number in range(150)]
    reader = PdfReader(io.BytesIO(made(Section("S", tables=(Table("Long", ("Name", "Value", "More"), rows),)))))
    pages = [each.extract_text() for each in reader.pages]
    assert len(pages) > 3
    for number, text in enumerate(pages, start=1):
        assert f"page {number} of {len(pages)}" in text
        assert "report 20260309-0011223344556677" in text


def test_a_long_table_goes_on_between_rows_with_its_head():
    rows = [(f"row{number:03d}", f"value{number:03d} " + "words " * 20) for number in range(80)]
    reader = PdfReader(io.BytesIO(made(Section("S", tables=(Table("Long", ("Head A", "Head B"), rows),)))))
    found = [each.extract_text() for each in reader.pages]
    seen = [name for text in found for name in re.findall(r"row\d{3}", text)]
    assert seen == [name for name, _ in rows], "each row once and in order"
    for text in found:
        rows_here = re.findall(r"row(\d{3})", text)
        assert [f"value{number}" for number in rows_here] == re.findall(r"value\d{3}", text), "a row is on one page"
        assert not rows_here or "Head A" in text


def test_no_word_of_a_crowded_table_is_cut():
    columns = ("Group", "Cases", "Finding", "Class", "Recall", "Others", "Before", "Lacking", "Remark")
    row = (
        "Station Name: CT2",
        "88",
        "worse since 1 December 2026",
        "meningioma",
        "61 % (48 to 72)",
        "90 %",
        "88 %",
        "41",
        "word " * 30,
    )
    text = pdf_text(made(Section("S", tables=(Table("Crowded", columns, [row]),))))
    for word in " ".join((*columns, *row)).split():
        assert word in text.split(), word


def test_sentences_read_from_the_left_and_numbers_from_the_right():
    table = Table("T", ("Name", "Value", "Summary"), [("a", "1", "A sentence that is longer than any number or word.")])
    html = render(page(Section("S", tables=(table,))))["report.html"].decode()
    assert '<th scope="col" class="text">Summary' in html
    assert "<td>1</td>" in html


def test_what_is_too_tall_for_a_page_is_made_smaller():
    reader = PdfReader(io.BytesIO(made(Section("S", pictures=(picture("tall", 30.0), picture("wide", 1.0))))))
    assert sum(len(each.images) for each in reader.pages) == 2


def test_a_hash_is_whole_and_inside_the_page():
    text = pdf_text(made(Section("S", tables=(Table("T", ("", ""), [("Weights", HASH)], mono=True),))))
    assert HASH[:32] in text
    assert HASH in text.replace(" ", "")


class Words(HTMLParser):
    """The words of a page's body, and what stands in for those who see no pictures."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.images, self.heads, self.tables = [], 0, [], [], 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.hidden += tag in ("style", "title", "nav")
        if tag == "img":
            self.images.append(values)
        if tag == "th":
            self.heads.append(values.get("scope"))
        self.tables += tag == "caption"

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "title", "nav")

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)


def read(html):
    parser = Words()
    parser.feed(html)
    return parser


def squeezed(text):
    return re.sub(r"\s+", "", text)


def test_pdf_and_html_have_the_same_content():
    sections = (
        Section("First", ("A paragraph with 5 %.", "Another, “quoted” and <i>plain</i> & safe."), ("Point one.", "Point two.")),
        Section(
            "Second", pictures=(picture(),), tables=(Table("Table of things", ("Name", "Value"), [("± ≥", "1 234")], "A remark."),)
        ),
    )
    whole = page(*sections)
    files = render(whole)
    html, printed = read(files["report.html"].decode()), squeezed(pdf_text(files["report.pdf"]))
    for words in html.words:
        assert squeezed(words) in printed, words
    assert [each["alt"] for each in html.images] == ["Alt of chart"]
    assert set(html.heads) == {"col", "row"}
    assert html.tables == 1
    assert "prefers-color-scheme: dark" in files["report.html"].decode()


@pytest.mark.parametrize("text", ["a % b", "5 % of it", "x\x00y\ud800z", "<script>"])
def test_any_text_can_be_set(text):
    assert "<script" not in markup(text)
    assert made(Section("S", (text,)))


@given(st.text(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=25, deadline=None)
def test_no_text_breaks_the_pdf(title, cell):
    assert made(Section(title, (cell,), (title,), tables=(Table(title, (title, cell), [(cell, title)], cell),))).startswith(b"%PDF")


@given(st.text())
def test_splitting_long_words_loses_nothing(text):
    assert squeezed(split_long(text)) == squeezed(text)
