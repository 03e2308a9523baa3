"""What calls on 1,024 sequences of the GPU cost, counted: no more than this, and the bench runs.

JITALLOC_GPU=machine pytest tests/test_cuda_row_counts.py
"""

from __future__ import annotations

import pytest

from asv_benchmarks.bench_cuda_row_counts import CASES, launches_of
from tests.gpu import COUNTED

pytestmark = COUNTED

# Instructions of the longest thread, with a tenth to spare. All is one launch.
MOST = {
    "append 1,024": 1_840,
    "append 1,024, merge due": 3_420,
    "append 1,024 with tokens": 2_100,
    "append 256 x 200": 9_250,
    "truncate 1,024": 2_030,
    "free 21 of 1,024": 2_980,
    "free 1,024": 14_400,
    "free 1,024, fifo": 55_500,
    "reorder 512": 26_400,
    "windows of 512": 13_800,
    "allocate 1,000": 760,
    "allocate 1,000, merge due": 2_200,
    "page_table_csr 1,024": 870,
    "attention_batch 1,024": 1_500,
    "room_for 1,024": 1_500,
}


@pytest.mark.parametrize("case", CASES)
def test_a_call_costs_no_more_and_is_one_launch(case: str) -> None:
    (launch,) = launches_of(case)
    assert MOST[case] / 2 < launch.most_instructions <= MOST[case]
