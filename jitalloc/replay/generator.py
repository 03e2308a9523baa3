"""Traffic without a trace: seeded, multi-turn chat whose turns share their prefixes.

Conversations begin at a rate that swells and ebbs. Each has one of a few system prompts, some
bring a document along, and every turn sends the whole conversation so far: system prompt,
document, all messages and all responses. Only `random.Random` is drawn from, conversation by
conversation, so a seed means the same requests everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

import numpy as np

from jitalloc.errors import InvalidArgument
from jitalloc.replay.request import Request

BLOCK_SIZE: Final = 16

DURATION: Final = 900.0  # seconds
STARTS_PER_SECOND: Final = 1.6
SWELL: Final = 0.5  # the rate goes up and down by this share
SWELL_SECONDS: Final = 360.0

SYSTEM_PROMPTS: Final = (2_900, 1_200, 700, 4_100, 350, 1_900)  # tokens, the most used first
DOCUMENT_SHARE: Final = 0.3
DOCUMENT: Final = (math.log(6_000), 0.8)  # log-normal: mean and deviation of the logarithm
MESSAGE: Final = (math.log(70), 1.0)
RESPONSE: Final = (math.log(220), 0.7)
LONGEST_DOCUMENT: Final = 40_000
LONGEST_MESSAGE: Final = 4_000
LONGEST_RESPONSE: Final = 2_000
ANOTHER_TURN: Final = 0.8  # chance that a turn is followed by one more
SECONDS_PER_TOKEN: Final = 0.04  # how fast a person sees the response appear
THINKING: Final = (math.log(20), 0.9)  # seconds between a response and the next message


class _Turn(NamedTuple):
    arrival: float
    conversation: int
    system: int
    prompt: int
    response: int


def generate(seed: int = 0, seconds: float = DURATION) -> Iterator[Request]:
    """Yield seeded multi-turn chat traffic.

    Parameters
    ----------
    seed : int
        The same seed gives the same requests.
    seconds : float
        Length of the recording; what would arrive later is cut off.

    Yields
    ------
    Request
        By arrival, the first at second 0. Block ids stand for 16 tokens each. A block that a
        prompt fills only partly keeps its id when the next turn fills it.

    Raises
    ------
    InvalidArgument
        `seconds` is not finite or not above 0.
    """
    if not 0 < seconds < math.inf:
        raise InvalidArgument("seconds", seconds, "a finite time above 0")
    turns: list[_Turn] = []
    own_blocks: list[int] = []  # blocks of a conversation behind its system prompt
    random = Random(seed)
    begin = 0.0
    while begin < seconds:
        own_blocks.append(_converse(random, len(own_blocks), begin, turns))
        wave = 1 + SWELL * math.sin(math.tau * begin / SWELL_SECONDS)
        begin += random.expovariate(STARTS_PER_SECOND * wave)
    turns.sort()

    shared = [length // BLOCK_SIZE for length in SYSTEM_PROMPTS]
    shared_start = np.cumsum([0, *shared])
    own_start = shared_start[-1] + np.cumsum([0, *own_blocks])
    for turn in turns:
        if turn.arrival >= seconds:
            break
        blocks = -(-turn.prompt // BLOCK_SIZE)
        common = min(blocks, shared[turn.system])
        first = own_start[turn.conversation]
        ids = np.empty(blocks, np.int64)
        ids[:common] = np.arange(common) + shared_start[turn.system]
        ids[common:] = np.arange(blocks - common) + first
        yield Request(turn.arrival, turn.prompt, turn.response, BLOCK_SIZE, ids)


def _converse(random: Random, conversation: int, begin: float, turns: list[_Turn]) -> int:
    """Add the turns of one conversation; return how many blocks follow its system prompt."""
    popular = [1 / (rank + 1) for rank in range(len(SYSTEM_PROMPTS))]
    (system,) = random.choices(range(len(SYSTEM_PROMPTS)), popular)
    history = SYSTEM_PROMPTS[system]
    if random.random() < DOCUMENT_SHARE:
        history += _draw(random, DOCUMENT, LONGEST_DOCUMENT)
    arrival = begin
    while True:
        prompt = history + _draw(random, MESSAGE, LONGEST_MESSAGE)
        response = _draw(random, RESPONSE, LONGEST_RESPONSE)
        turns.append(_Turn(arrival, conversation, system, prompt, response))
        if random.random() >= ANOTHER_TURN:
            return -(-prompt // BLOCK_SIZE) - SYSTEM_PROMPTS[system] // BLOCK_SIZE
        history = prompt + response
        arrival += response * SECONDS_PER_TOKEN + random.lognormvariate(*THINKING)


def _draw(random: Random, shape: tuple[float, float], longest: int) -> int:
    return min(longest, 1 + int(random.lognormvariate(*shape)))
