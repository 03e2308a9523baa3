"""Tokens from block ids: equal where the ids are, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from jitalloc.errors import TraceError
from jitalloc.replay import Request, prompts
from jitalloc.replay.prompts import Prompts
from jitalloc.state import INT32_MAX


def request(tokens: int, ids: list[int] | None, scope: int = 0, block: int = 4) -> Request:
    blocks = None if ids is None else np.array(ids, np.int64)
    return Request(0, tokens, 9, block if ids is not None else 0, blocks, scope)


def test_blocks_give_tokens_and_what_follows_is_the_requests_own() -> None:
    given = Prompts()
    first = given.of(request(7, [50, 2**62]), 0)
    assert first.tokens(9).tolist() == [0, 0, 0, 0, 1, 1, 1] + [INT32_MAX] * 2
    assert first.tokens(6).tolist() == [0, 0, 0, 0, 1, 1]
    assert first.whole_tokens().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (first.shared, first.scope, first.whole_length) == (True, 0, 8)
    second = given.of(request(13, [50, 7, 2**62]), 1)  # the last token has no id
    own = INT32_MAX - 1
    assert second.own == own
    assert second.tokens(13).tolist() == [0] * 4 + [2] * 4 + [1] * 4 + [own]
    assert second.whole_tokens().tolist() == second.tokens(13).tolist()
    assert second.tokens(13).dtype == np.int32


def test_wide_ids_that_agree_in_their_low_bits_stay_apart() -> None:
    ids = [5, 5 + 2**31, 5 + 2**32, 5 + 2**62, 2**63 - 1, 0]
    tokens = Prompts().of(request(24, ids), 0).tokens(24)
    assert len(set(tokens.tolist())) == len(ids)


def test_scopes_number_their_ids_by_themselves() -> None:
    given = Prompts()
    assert given.of(request(8, [3, 4], scope=0), 0).tokens(8)[-1] == 1
    other = given.of(request(4, [4], scope=1), 1)
    assert (other.tokens(4)[-1], other.scope) == (0, 1)


def test_no_prompt_has_the_tokens_of_a_response() -> None:
    given = Prompts()
    found = [given.of(request(8, [i, i + 1]), i).tokens(12) for i in range(50)]
    prompts, responses = (
        {each for row in found for each in row[s].tolist()}
        for s in (
            slice(8),
            slice(8, 12),
        )
    )
    assert not prompts & responses
    assert len(responses) == 50


@pytest.mark.parametrize("length", [0, 1, 3])
def test_requests_without_ids_or_tokens(length: int) -> None:
    prompt = Prompts().of(request(length, None), 3)
    assert not prompt.shared
    assert prompt.tokens(length).tolist() == [INT32_MAX - 3] * length
    assert Prompts().of(request(0, []), 0).whole_tokens().size == 0


def test_a_short_prompt_of_a_huge_block_takes_no_memory() -> None:
    prompt = Prompts().of(request(3, [1], block=2**31 - 1), 0)
    assert prompt.tokens(3).tolist() == [0, 0, 0]


def test_running_out_of_tokens_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST", 4)
    given = Prompts()
    given.of(request(16, [1, 2, 3, 4]), 3)
    with pytest.raises(TraceError, match="more than 4 distinct block ids"):
        given.of(request(4, [5]), 0)
    with pytest.raises(TraceError, match="more than 4 requests"):
        given.of(request(4, [1]), 4)
