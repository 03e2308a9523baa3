"""What a prefix cache answers with: plain records, copies of its counters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What a prefix cache was asked, and what became of its pages, since it was made.

    Attributes
    ----------
    lookups, tokens, pages : int
        Calls of `match`, and all tokens and whole pages that they asked for.
    hit_tokens, hit_pages : int
        How many of those were cached.
    inserted_pages : int
        Pages adopted.
    evicted_requested, evicted_pressure, evicted_cleared : int
        Pages that gave way to `evict`; to sequences that needed room, or a pool that shrank; and
        to `clear` or `invalidate`.
    """

    lookups: int
    tokens: int
    pages: int
    hit_tokens: int
    hit_pages: int
    inserted_pages: int
    evicted_requested: int
    evicted_pressure: int
    evicted_cleared: int
