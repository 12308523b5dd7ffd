import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma.data.mix import ShareMixer


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 400), min_size=50, max_size=200),
)
def test_every_source_stays_within_one_document_of_its_share(shares, sizes):
    mixer = ShareMixer(shares)
    for size in sizes:
        mixer.add(mixer.choose(), size)
        given_tokens = sum(mixer.counts)
        for share, count in zip(mixer.shares, mixer.counts, strict=True):
            assert count <= share * given_tokens + max(sizes)
            assert count >= share * given_tokens - len(shares) * max(sizes)


def test_counts_are_the_whole_state():
    first, second = ShareMixer([0.8, 0.15, 0.05]), ShareMixer([0.8, 0.15, 0.05])
    sizes = [17, 300, 45, 3, 90] * 8
    for size in sizes:
        first.add(first.choose(), size)
    second.counts = list(first.counts)
    for size in sizes:
        assert first.choose() == second.choose()
        first.add(first.choose(), size)
        second.add(second.choose(), size)


def test_share_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        ShareMixer([1.0, 0.0])
