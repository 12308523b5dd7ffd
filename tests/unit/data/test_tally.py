import json
from collections import Counter

import numpy as np

from sigma.data.feed import Document
from sigma.data.tally import Tally, columns


def document(dropped, skipped):
    return Document(("s", "1"), np.empty(0), {}, None, Counter(dropped), (), Counter(skipped))


def test_columns_add_what_gate_and_sources_left_out():
    tally = Tally()
    tally.take("red", document({"spam": 2}, {"damaged": 1}))
    tally.take("red", document({"spam": 1}, {"damaged": 1, "empty": 4}))
    tally.take("blue", document({}, {"empty": 2}))
    tally.take("blue", document({"short": 1}, {}))
    tally.tokens["red"] += 7
    tally.substitutions = 3
    again = Tally()
    again.load_state_dict(json.loads(json.dumps(tally.state_dict())))
    for one in (tally, again):
        assert columns(one.state_dict()) == {
            "data_substitutions": 3, "data_tokens_red": 7, "data_dropped_damaged": 1, "data_dropped_empty": 6,
            "data_dropped_short": 1, "data_dropped_spam": 3,
        }  # fmt: skip
