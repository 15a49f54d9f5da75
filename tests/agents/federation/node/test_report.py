"""A report shows what was told and runs nothing, whoever wrote the words in it."""

import re
import struct
import zlib
from html.parser import HTMLParser
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.federation.node.report import POLICY, Report, Row, as_html, as_picture, charts
from agents.training.raster import legend

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&"
ROWS = [
    Row(1, "settled", 3, 3, 0, 300, 1200, 1.5, 1.25, 0.5),
    Row(2, "void", 3, 0, 0, 0, 0, void=EVIL),
    Row(3, "settled", 3, 2, 1, 200, 800, 1.0, 0.75, 0.625, 0.25),
]


class Tags(HTMLParser):
    """Notes tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def looked_at(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_words_of_others_are_text_and_the_page_asks_for_nothing_from_anywhere() -> None:
    page = as_html(Report(EVIL, [(EVIL, EVIL)], ROWS, [(3, EVIL, EVIL)]))
    found, plain = (
        looked_at(page),
        looked_at(as_html(Report("plain", [("a", "b")], ROWS[:1] + ROWS[2:], [(3, "c", "d")]))),
    )
    assert found.tags == plain.tags and found.attributes == plain.attributes
    assert not {"script", "img", "link", "iframe", "object"} & found.tags
    assert not {"style", "src", "href", "onerror", "onload"} & found.attributes
    assert "script-src" not in POLICY and POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_charts_are_of_what_was_told_and_no_others() -> None:
    assert [title for title, *_ in charts(ROWS)] == ["Loss", "Accuracy", "Participants", "Updates", "Privacy spent"]
    silent = [row._replace(loss=None, result_loss=None, result_accuracy=None, epsilon=None) for row in ROWS]
    assert [title for title, *_ in charts(silent)] == ["Participants", "Updates"]
    assert charts([]) == []
    loss = charts(ROWS)[0][1][0]
    assert list(loss.points) == [(1, 1.25), (3, 0.75)]


def test_without_a_coordinator_the_best_and_the_worst_mean_have_curves_and_how_far_models_are_apart() -> None:
    spread = [
        Row(n, "averaged", 3, 3, 0, 1, 1, losses=(2.0, 1.0), accuracies=(0.5, 0.75), apart=1.0 / n) for n in (1, 2)
    ]
    found = {title: {curve.name: curve.points for curve in curves} for title, curves, _, _ in charts(spread)}
    assert found["Loss"] == {"best member's mean": [(1, 1.0), (2, 1.0)], "worst member's mean": [(1, 2.0), (2, 2.0)]}
    assert found["Accuracy"]["worst member's mean"] == [(1, 50.0), (2, 50.0)]
    assert found["Models, how far apart"]["states, from their mean"] == [(1, 1.0), (2, 0.5)]


def test_updates_are_told_in_a_unit_of_their_size_and_a_level_line_has_short_numbers() -> None:
    level = [Row(n, "settled", 3, 3, 0, 8_208, 8_208) for n in (1, 2)]
    (title, curves, _, unit) = charts(level)[1]
    assert (title, unit, list(curves[0].points)) == ("Updates", "kB", [(1, 8.208), (2, 8.208)])
    page = as_html(Report("t", [], level))
    labels = re.findall(r'text-anchor="end" fill="#555">([^<]+)<', page[page.index("<title>Updates") :])
    assert labels and all(len(label) <= 4 for label in labels[:-1])


def test_the_names_of_curves_stand_beside_the_title_or_below_it_and_all_in_the_picture() -> None:
    names = ["result, held out", "after training", "best member's mean", "worst member's mean"]
    places = legend(names, 140)
    ends = [x + 16 + 12 * len(name) for name, (x, _) in zip(names, places, strict=True)]
    for y in (4, 22):
        line = sorted((x, end) for (x, at), end in zip(places, ends, strict=True) if at == y)
        assert all(before[1] < after[0] for before, after in pairwise(line))
        assert line[0][0] >= (140 if y == 4 else 0) and line[-1][1] <= 720
    assert {y for _, y in places} == {4, 22} and {y for _, y in legend(names[:2], 140)} == {4}


def test_rounds_are_counted_in_whole_numbers() -> None:
    page = as_html(Report("t", [], [*ROWS[:1], ROWS[2]._replace(number=2)]))
    loss = page[page.index("<title>Loss") : page.index("</svg>")]
    labels = re.findall(r'text-anchor="middle" fill="#555">([^<]+)<', loss)
    assert labels == ["1", "2"]


def test_a_table_tells_every_round_and_why_one_was_void() -> None:
    page = as_html(Report("t", [], ROWS))
    assert page.count("<tr><td>") == 3 and "62.5%" in page and "<td>300</td>" in page


def read_png(data: bytes) -> tuple[int, int, bytes]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, parts = 8, {}
    while at < len(data):
        (n,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + n]
        assert struct.unpack(">I", data[at + 8 + n : at + 12 + n])[0] == zlib.crc32(name + body)
        parts[name], at = body, at + 12 + n
    width, height, depth, kind = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert (depth, kind) == (8, 2)
    return width, height, zlib.decompress(parts[b"IDAT"])


def test_the_picture_is_a_png_of_the_size_it_says_with_something_on_it() -> None:
    width, height, pixels = read_png(as_picture(Report(EVIL, [("experiment", "b" * 200)], ROWS)))
    assert len(pixels) == height * (1 + 3 * width)
    assert len(set(pixels)) > 5


@settings(max_examples=25, deadline=None)
@given(
    st.text(max_size=80),
    st.lists(st.tuples(st.floats(allow_nan=True, width=32), st.integers(0, 1 << 40)), max_size=5),
)
def test_no_word_and_no_number_breaks_a_report(title: str, told: list[tuple[float, int]]) -> None:
    rows = [Row(n, "settled", 1, 1, 0, size, size, loss, loss) for n, (loss, size) in enumerate(told, start=1)]
    report = Report(title, [(title, title)], rows)
    assert looked_at(as_html(report)).tags <= looked_at(as_html(Report("x", [("a", "b")], ROWS))).tags
    read_png(as_picture(report))


def test_where_nobody_coordinates_nobody_is_selected_nor_in_a_close() -> None:
    page = as_html(Report("t", [], ROWS, is_gossip=True))
    assert "taking part" in page and "made a mean" in page and "selected" not in page and "in the close" not in page
    assert "in the close" in as_html(Report("t", [], ROWS))
