"""What a replay is told: pool, batch, and how long a step of the imagined model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from jitalloc.choices import Device, Order, PrefixPolicy
from jitalloc.errors import InvalidArgument
from jitalloc.state import INT32_MAX

MODES = ("serve", "cache")
EXPORTS = ("none", "csr", "padded")
REPLAY_POLICIES = ("lru", "fifo", "mru", "lfu", "slru")
LONGEST = 2**20  # tokens: an unbounded row of a huge pool would fill the memory


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Options of a replay.

    A step of the imagined model takes `step_ms + token_us * tokens` of virtual time, where
    `tokens` are the prompt tokens and the decoded tokens that it computes. The defaults stand
    for a node that reads about 80,000 prompt tokens a second and decodes at up to 50 steps a
    second. They change what overlaps with what, and never the speed of the replay's own clock.

    Attributes
    ----------
    mode : {"serve", "cache"}
        `serve`: continuous batching on a virtual clock. `cache`: one request after another.
    num_pages, page_size, order, device
        As for `PagePool`.
    policy : {"lru", "fifo", "mru", "lfu", "slru", "none"}
        Which cached prefix gives way first, as for `PrefixCache`; `none`: nothing is cached.
        The policy `priority` is left out: a trace tells no priorities, and among equal ones it
        is `lru`.
    max_batch : int
        Most sequences that run at once.
    max_length : int or None
        Longest sequence, prompt and response, in tokens; what is longer is rejected. None:
        whatever fits the pool, up to 1,048,576. Each row of the block table has room for it.
    step_tokens : int
        Most tokens computed in a step; longer prompts are read in chunks.
    step_ms, token_us : float
        Virtual time of a step: milliseconds for each step, microseconds for each token.
    export : {"none", "csr", "padded"}
        Also build the block tables of the running sequences in each step, as attention kernels
        read them. Their time counts as allocator time.
    limit : int or None
        Only the first so many requests.
    """

    mode: str = "serve"
    num_pages: int = 65_536
    page_size: int = 16
    order: Order = "sorted"
    policy: str = "lru"
    device: Device = "cpu"
    max_batch: int = 256
    max_length: int | None = None
    step_tokens: int = 8_192
    step_ms: float = 20.0
    token_us: float = 10.0
    export: str = "none"
    limit: int | None = None

    def __post_init__(self) -> None:
        choices = (("mode", MODES), ("policy", (*REPLAY_POLICIES, "none")), ("export", EXPORTS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise InvalidArgument(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for name in ("num_pages", "page_size", "max_batch", "max_length", "step_tokens", "limit"):
            self._check_count(name, getattr(self, name))
        for name in ("step_ms", "token_us"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InvalidArgument(name, value, "a finite time that is not negative")
        if self.step_ms == self.token_us == 0:
            raise InvalidArgument("step_ms", 0, "a step must take some time: give it or token_us")
        if self.step_tokens < self.max_batch:
            raise InvalidArgument(
                "step_tokens",
                self.step_tokens,
                f"a full batch decodes {self.max_batch} tokens a step",
            )

    @property
    def prefix_policy(self) -> PrefixPolicy | None:
        """What the prefix cache is made with; None: nothing is cached."""
        return None if self.policy == "none" else cast(PrefixPolicy, self.policy)

    def _check_count(self, name: str, value: Any) -> None:
        if value is None and name in ("max_length", "limit"):
            return
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= INT32_MAX:
            raise InvalidArgument(name, value, f"a whole number, 1 .. {INT32_MAX}")

    @property
    def length_limit(self) -> int:
        """Tokens of the longest sequence that can be served."""
        pool = self.num_pages * self.page_size
        return min(pool, LONGEST if self.max_length is None else self.max_length)

    @property
    def row_pages(self) -> int:
        """Pages that a row of the block table has room for."""
        return -(-self.length_limit // self.page_size)
