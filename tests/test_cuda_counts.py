"""What calls on a pool of a million pages cost, counted: no more than this, and the bench runs.

JITALLOC_GPU=machine pytest tests/test_cuda_counts.py
"""

from __future__ import annotations

import pytest

from asv_benchmarks.bench_cuda_counts import CASES, RING, launches_of
from tests.gpu import COUNTED

pytestmark = COUNTED

# Instructions of the longest thread, of all launches together, with a tenth to spare.
MOST = {
    "alloc 1 M": 265,
    "alloc 10, merge due": 1_690,
    "alloc_batch of 1 M single pages": 1_780,
    "admit 1 M": 1_480,
    "merge 1 M": 1_160,
    "share 4,096": 215,
    "share 1 M": 215,
    "free 4,096": 640,
    "free 1 M": 640,
    "decode 1,024": 480,
    "decode 1,024, merge due": 1_490,
    "extend 256 x 256": 830,
    "extend 1 x 65,536": 690,
    "extend 256 x 256, merge due": 11_600,
}
MOST_RING = {"free 4,096": 1_740, "free 1 M": 1_750}
TWO_LAUNCHES = [("alloc_batch of 1 M single pages", "sorted")]
TWO_LAUNCHES += [("free 1 M", order) for order in ("fifo", "lifo")]
CALLS = [(case, "sorted") for case in CASES]
CALLS += [(case, order) for case in RING for order in ("fifo", "lifo")]


@pytest.mark.parametrize(("case", "order"), CALLS)
def test_a_call_costs_no_more(case: str, order: str) -> None:
    launches = launches_of(case, order)
    longest = sum(each.most_instructions for each in launches)
    most = MOST_RING.get(case, MOST[case]) if order != "sorted" else MOST[case]
    assert most / 2 < longest <= most
    assert len(launches) == (2 if (case, order) in TWO_LAUNCHES else 1)
