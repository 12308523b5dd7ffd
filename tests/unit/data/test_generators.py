import random

import pytest
import torch

from sigma.data.generators import FAMILIES, GeneratorSource, Item, item, parity_batch, side_of, verify

FAMILY = pytest.mark.parametrize("family", list(FAMILIES))


@FAMILY
def test_second_implementation_agrees_with_every_answer(family):
    assert all(verify(family, item(family, seed, i)) for seed in (0, 1) for i in range(300))


@FAMILY
def test_second_implementation_rejects_another_answer(family):
    for i in range(50):
        right = item(family, 0, i)
        wrong = {"even": "odd", "odd": "even"}.get(right.answer, right.answer + "0")
        assert not verify(family, Item(right.prompt, wrong))


def test_schoolbook_arithmetic_agrees_with_python_on_borrows_and_zero():
    for left, right in [(0, 0), (7, 70), (1000, 1), (999, 1000), (500, 500), (10, 9), (101, 99)]:
        assert verify("arithmetic", Item(f"{left} - {right} = ", str(left - right)))
        assert verify("arithmetic", Item(f"{left} * {right} = ", str(left * right)))
        assert verify("arithmetic", Item(f"{left} + {right} = ", str(left + right)))


@FAMILY
def test_item_is_a_function_of_key_and_index(family):
    order = list(range(40))
    random.Random(0).shuffle(order)
    forward = [item(family, 7, i) for i in range(40)]
    assert {i: item(family, 7, i) for i in order} == dict(enumerate(forward))
    assert [item(family, 8, i) for i in range(40)] != forward


@FAMILY
def test_splits_never_share_a_prompt(family):
    prompts = {
        split: {item(family, 0, i, split=split, level=1 if family != "arithmetic" else 2).prompt for i in range(400)}
        for split in ("train", "validation", "hidden")
    }
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["train"] & prompts["hidden"]
    assert not prompts["validation"] & prompts["hidden"]
    assert all(side_of(prompt) == split for split in prompts for prompt in prompts[split])


@FAMILY
def test_higher_level_is_longer(family):
    def mean(level):
        return sum(len(item(family, 0, i, level=level).prompt) for i in range(50))

    assert mean(2) < mean(4)


@FAMILY
def test_source_resumes_from_one_integer(family):
    source = GeneratorSource(family, 4)
    records = [next(source) for _ in range(6)]
    resumed = GeneratorSource(family, 4)
    resumed.seek({"index": 3})
    assert [next(resumed) for _ in range(3)] == records[3:]
    assert resumed.cursor() == {"index": 6}
    assert records[2].text == "".join(f"{row.prompt}{row.answer}\n" for row in source.items(2))


def test_parity_batch_labels_are_running_parities():
    ids, labels = parity_batch(37, 5, seed=1)
    for row_ids, row_labels in zip(ids.tolist(), labels.tolist(), strict=True):
        for t in range(37):
            assert row_labels[t] - 3 == sum(token - 3 for token in row_ids[: t + 1]) % 2
    again, _ = parity_batch(37, 5, seed=1)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, parity_batch(37, 5, seed=2)[0])
