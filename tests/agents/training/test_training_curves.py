import xml.dom.minidom
import zlib
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from agents.training.curves import COLOURS, HEIGHT_CHARS, WIDTH_CHARS, Curve, as_svg, as_text
from agents.training.raster import as_png

POINTS = st.lists(
    st.tuples(st.integers(0, 1000).map(float), st.floats(allow_infinity=True, allow_nan=True)), max_size=30
)
FALLING = Curve("training", [(float(n), 10.0 / n) for n in range(1, 50)])
SEEN = Curve("held out <&>", [(0.0, 9.0), (49.0, 1.0)], is_marks=True)


def test_a_falling_curve_goes_from_the_upper_left_to_the_lower_right():
    lines = as_text([FALLING, SEEN], "steps", "nats").split("\n")
    assert len(lines) == HEIGHT_CHARS + 3
    assert all(len(line) <= WIDTH_CHARS for line in lines[1:])
    first, last = lines[1].partition("\u2502")[2], lines[HEIGHT_CHARS].partition("\u2502")[2]
    assert first.strip() and len(first.rstrip()) < 10
    assert len(last.rstrip()) > WIDTH_CHARS - 20
    assert "x held out" in lines[0] and lines[-1].endswith("49 steps")


@example([(1.0, 5e-324), (2.0, 1e-323)], [])
@example([(1.0, 1e-30), (2.0, 1.0000000000000001e-30)], [(0.0, -5e-324)])
@given(POINTS, POINTS)
def test_any_points_can_be_drawn(one, other):
    curves: Sequence[Curve] = [Curve("a", one), Curve("b", other, is_marks=True)]
    as_text(curves, "x", "y")
    xml.dom.minidom.parseString(as_svg("t", curves, "x", "y"))


def test_no_points_make_no_text_and_names_are_escaped():
    assert as_text([Curve("a", [])], "x", "y") == ""
    assert "held out &lt;&amp;&gt;" in as_svg("<b>", [FALLING, SEEN], "x", "y")


def test_a_curve_of_marks_lets_what_runs_below_it_be_seen():
    flat = [(0.0, 1.0), (9.0, 1.0)]
    hidden = as_png(["t"], [("t", [Curve("a", flat), Curve("b", flat)], "x", "y")], 1.0)
    seen = as_png(["t"], [("t", [Curve("a", flat), Curve("b", flat, is_marks=True)], "x", "y")], 1.0)
    blue = bytes.fromhex(COLOURS[0][1:])
    assert pixels(hidden).count(blue) < pixels(seen).count(blue) / 3
    assert "stroke-dasharray" in as_svg("t", [Curve("b", flat, is_marks=True)], "x", "y")
    assert "stroke-dasharray" not in as_svg("t", [Curve("b", flat)], "x", "y")


def pixels(png: bytes) -> bytes:
    at = png.index(b"IDAT")
    return zlib.decompress(png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")])
