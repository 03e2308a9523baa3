"""Figures of a call whose launches the machine of the tests has counted."""

from __future__ import annotations

from typing import Any


class Counted:
    """`launches` is what one call has done; figures are sums over its launches."""

    launches: Any

    def track_longest_thread(self, *_case: str) -> int:
        return sum(each.most_instructions for each in self.launches)

    def track_memory_operations(self, *_case: str) -> int:
        return sum(each.loads + each.stores + each.atomics for each in self.launches)

    def track_bytes(self, *_case: str) -> int:
        return sum(each.bytes for each in self.launches)

    def track_barriers(self, *_case: str) -> int:
        return sum(each.barriers for each in self.launches)

    def track_launches(self, *_case: str) -> int:
        return len(self.launches)

    track_longest_thread.unit = "instructions"  # type: ignore[attr-defined]
    track_memory_operations.unit = "operations"  # type: ignore[attr-defined]
    track_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_barriers.unit = "barriers"  # type: ignore[attr-defined]
    track_launches.unit = "launches"  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return (
            f"{self.track_longest_thread():8,d} instructions,"
            f" {self.track_memory_operations():12,d} memory operations,"
            f" {self.track_bytes():12,d} bytes, {self.track_barriers():6,d} barriers,"
            f" {self.track_launches()} launches"
        )
