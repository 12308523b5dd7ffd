import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sigma.data.recent import Recent


@given(window=st.integers(0, 7), sizes=st.lists(st.integers(0, 11), max_size=9))
def test_rows_are_the_last_ones_in_order(window, sizes):
    recent, n = Recent(window, 2), sum(sizes)
    rows = np.arange(2 * n).reshape(n, 2)
    at = 0
    for size in sizes:
        recent.add(rows[at : at + size])
        at += size
    expected = rows[max(0, n - window) :] if window else rows[:0]
    assert recent.rows().tolist() == expected.tolist()
    again = Recent(window, 2)
    again.load(recent.rows())
    assert again.rows().tolist() == expected.tolist()
