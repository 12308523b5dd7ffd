import itertools
import math

import pytest

from sigma.train.chart import Line, Rule, line_chart, nice_ticks, thin


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 8.9), (1e-6, 2e-6), (0, 123456), (2.0, 2.1)])
def test_ticks_are_round_and_inside_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    steps = {round(b - a, 12) for a, b in itertools.pairwise(ticks)}
    assert max(steps) - min(steps) <= 1e-9 * max(abs(high), 1)


def test_an_empty_range_has_one_tick():
    assert nice_ticks(3, 3) == [3]


def test_thinning_keeps_the_last_point():
    points = [(float(i), float(i)) for i in range(5001)]
    kept = thin(points, 800)
    assert len(kept) <= 801
    assert kept[-1] == points[-1]


def test_the_curve_is_drawn_inside_the_frame_and_higher_values_are_higher_up():
    svg = line_chart("loss", [Line("train", [(0, 4.0), (10, 2.0)], "c0")], [Rule("gzip", 3.0)])
    start, end = svg.split("class='curve c0' d='M")[1].split("'")[0].split("L")
    (x0, y0), (x1, y1) = (map(float, p.split()) for p in (start, end))
    assert x0 < x1
    assert y0 < y1  # SVG counts downwards: the loss fell
    assert "gzip 3.000" in svg


def test_text_is_escaped():
    assert "<script>" not in line_chart("<script>", [Line("<script>", [(0, 1.0)], "c0")])


def test_no_points_says_so():
    assert "Nothing measured yet" in line_chart("loss", [Line("train", [], "c0")])


def test_constant_values_do_not_divide_by_zero():
    assert math.isfinite(
        float(line_chart("x", [Line("a", [(1, 0.0), (2, 0.0)], "c0")]).split("M")[1].split()[0].rstrip("H"))
    )
