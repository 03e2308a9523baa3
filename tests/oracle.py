"""What a pool must do, in plain Python: lists and sets, one page after the other.

Read this first. Every call of the library is compared with the one here: same result, same
error, same state. Nothing is fast on purpose. A call looks at everything before it changes
anything, so a call that raises leaves the model as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jitalloc.errors import DoubleFree, InvalidArgument, InvalidPage, OutOfPages, PageInUse


class Moves(NamedTuple):
    """Pages whose contents move, `src[i]` to `dst[i]`."""

    src: list[int]
    dst: list[int]


def pages_of(tokens: int, page_size: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // page_size)


class Pool:
    """The model of `PagePool`: `free_list` in the order in which pages go out."""

    def __init__(
        self, num_pages: int, page_size: int = 16, order: str = "sorted", null_page: bool = False
    ) -> None:
        self.num_pages, self.page_size, self.order = num_pages, page_size, order
        self.first = 1 if null_page else 0
        self.owners = [0] * num_pages
        if null_page:
            self.owners[0] = 1
        self.free_list = list(range(self.first, num_pages))
        self.released: set[int] = set()
        self.step = self.allocated = self.freed = self.merges = self.peak = 0
        self.caches: list[Any] = []  # each has `rows`: the block tables that use this pool

    # What can be asked.

    @property
    def usable(self) -> int:
        return self.num_pages - self.first

    @property
    def available(self) -> int:
        return len(self.free_list) + len(self.released)

    @property
    def used(self) -> int:
        return self.usable - self.available

    @property
    def utilization(self) -> float:
        return self.used / self.usable if self.usable else 0.0

    def longest_run(self) -> int:
        best = run = 0
        unowned = {*self.free_list, *self.released}
        for page in range(self.num_pages):
            run = run + 1 if page in unowned else 0
            best = max(best, run)
        return best

    def fragmentation(self) -> float:
        return 1 - self.longest_run() / self.available if self.available else 0.0

    def admit(self, counts: Sequence[int]) -> int:
        self.check_counts("counts", counts)
        fit, total = 0, 0
        for count in counts:
            total += count
            if total > self.available:
                break
            fit += 1
        return fit

    def refcount(self, pages: Sequence[int]) -> list[int]:
        for i, page in enumerate(pages):
            if not 0 <= page < self.num_pages:
                raise InvalidPage("pages", page, "no page of this pool", i)
        return [self.owners[page] for page in pages]

    # What changes it.

    def alloc(self, n: int, contiguous: bool = False) -> list[int]:
        if contiguous and self.order != "sorted":
            raise InvalidArgument("contiguous", True, "needs order sorted")
        if n < 0:
            raise InvalidArgument("n", n, "negative")
        if contiguous:
            return self._alloc_run(n)
        self.need(n)
        pages = self.take(n)
        self.step += 1
        return pages

    def _alloc_run(self, n: int) -> list[int]:
        self.need(n)
        unowned = {*self.free_list, *self.released}
        for start in range(self.num_pages - n + 1):
            run = range(start, start + n)
            if unowned.issuperset(run):
                self.merge_released()
                for page in run:
                    self.free_list.remove(page)
                self._hand_out(run)
                self.step += 1
                return list(run)
        raise OutOfPages(n, self.available, self.longest_run())

    def alloc_batch(self, counts: Sequence[int]) -> tuple[list[int], list[int]]:
        self.check_counts("counts", counts)
        self.need(sum(counts))
        pages = self.take(sum(counts))
        self.step += 1
        return [sum(counts[:i]) for i in range(len(counts) + 1)], pages

    def share(self, pages: Sequence[int]) -> None:
        for i, page in enumerate(pages):
            self._check_id(page, i)
            if self.owners[page] == 0:
                raise InvalidPage("pages", page, "nobody holds it", i)
        for page in pages:
            self.owners[page] += 1
        self.step += 1

    def free(self, pages: Sequence[int]) -> int:
        named: Counter[int] = Counter()
        for i, page in enumerate(pages):
            self._check_id(page, i)
            named[page] += 1
            if named[page] > self.owners[page]:
                raise DoubleFree("pages", page, "more often than it has owners", i)
        self.step += 1
        return self.give_back(pages)

    def free_group(self, calls: Sequence[Sequence[int]]) -> int:
        """All the frees of one group, as the single free that they become."""
        return self.free([page for call in calls for page in call])

    def merge(self) -> int:
        merged = len(self.released)
        self.merge_released()
        self.step += 1
        return merged

    def alloc_extend(
        self, prefix_lens: Sequence[int], seq_lens: Sequence[int], last_slots: Sequence[int]
    ) -> list[int]:
        size = self.page_size
        batch = list(zip(prefix_lens, seq_lens, last_slots, strict=True))
        for i, (prefix, seq, last) in enumerate(batch):
            if prefix < 0:
                raise InvalidArgument("prefix_lens", prefix, "negative", i)
            if seq < prefix:
                raise InvalidArgument("seq_lens", seq, "below its prefix", i)
            self._check_last_slot(last, prefix, i)
        needs = [pages_of(seq, size) - pages_of(prefix, size) for prefix, seq, _ in batch]
        self.need(sum(needs))
        taken = iter(self.take(sum(needs)))
        slots = []
        for prefix, seq, last in batch:
            slot = last
            for position in range(prefix, seq):
                # A token either starts a page or stands right behind the one before it.
                slot = next(taken) * size if position % size == 0 else slot + 1
                slots.append(slot)
        self.step += 1
        return slots

    def alloc_decode(self, seq_lens: Sequence[int], last_slots: Sequence[int]) -> list[int]:
        for i, (seq, last) in enumerate(zip(seq_lens, last_slots, strict=True)):
            if seq < 1:
                raise InvalidArgument("seq_lens", seq, "counts the new token", i)
            self._check_last_slot(last, seq - 1, i)
        return self.alloc_extend([seq - 1 for seq in seq_lens], seq_lens, last_slots)

    def _check_last_slot(self, last: int, prefix: int, i: int) -> None:
        if not -1 <= last < self.num_pages * self.page_size or (last == -1) != (prefix == 0):
            raise InvalidArgument("last_slots", last, "no slot of this pool", i)
        if (last + 1) % self.page_size != prefix % self.page_size:
            raise InvalidArgument("last_slots", last, "does not end where the prefix ends", i)
        if last >= 0 and (last // self.page_size < self.first or not self._held(last)):
            raise InvalidArgument("last_slots", last, "nobody holds its page", i)

    def _held(self, slot: int) -> bool:
        return self.owners[slot // self.page_size] > 0

    def free_slots(self, slots: Sequence[int]) -> int:
        for i, slot in enumerate(slots):
            if not self.first * self.page_size <= slot < self.num_pages * self.page_size:
                raise InvalidArgument("slots", slot, "no slot of this pool", i)
            if not self._held(slot):
                raise InvalidArgument("slots", slot, "nobody holds its page", i)
        self.step += 1
        return self.give_back(list(dict.fromkeys(slot // self.page_size for slot in slots)))

    def clear(self) -> None:
        if any(cache.rows for cache in self.caches):
            raise InvalidArgument("pool", self, "sequences live on it")
        self.freed += self.used
        for page in range(self.first, self.num_pages):
            self.owners[page] = 0
        self.free_list = list(range(self.first, self.num_pages))
        self.released.clear()
        self.step += 1

    def resize(self, num_pages: int) -> None:
        if num_pages <= self.first:
            raise InvalidArgument("num_pages", num_pages, "at least one page")
        prefixes = [cache for cache in self.caches if hasattr(cache, "merely_cached")]
        for page in range(num_pages, self.num_pages):
            if self.owners[page] and not any(each.merely_cached(page) for each in prefixes):
                raise PageInUse("num_pages", num_pages, "a page is held, and past the new end")
        for each in prefixes:
            each.give_up_past(num_pages)
        self.free_list = [page for page in self.free_list if page < num_pages]
        self.released = {page for page in self.released if page < num_pages}
        self.free_list += range(self.num_pages, num_pages)
        self.owners = self.owners[:num_pages] + [0] * (num_pages - self.num_pages)
        self.num_pages = num_pages
        self.step += 1

    def defragment(self) -> Moves:
        pages = range(self.first, self.num_pages)
        end = self.first + self.used  # used pages will stand in first .. end-1
        src = [page for page in pages if page >= end and self.owners[page]]
        dst = [page for page in pages if page < end and not self.owners[page]]
        for old, new in zip(src, dst, strict=True):
            self.owners[old], self.owners[new] = 0, self.owners[old]
        new_name = dict(zip(src, dst, strict=True))
        for cache in self.caches:
            for row in cache.rows.values():
                row.pages = [new_name.get(page, page) for page in row.pages]
        self.free_list = list(range(end, self.num_pages))
        self.released.clear()
        self.step += 1
        return Moves(src, dst)

    # What the calls above are made of (the sequences use these too).

    @staticmethod
    def check_counts(name: str, counts: Iterable[int]) -> None:
        for i, count in enumerate(counts):
            if count < 0:
                raise InvalidArgument(name, count, "negative", i)

    def _check_id(self, page: int, i: int) -> None:
        if not self.first <= page < self.num_pages:
            raise InvalidPage("pages", page, "no page of this pool, or the null page", i)

    def need(self, n: int) -> None:
        if n > self.available:
            raise OutOfPages(n, self.available)

    def take(self, n: int) -> list[int]:
        """Hand out the next `n` pages; there are that many (`need`)."""
        if n > len(self.free_list):
            self.merge_released()
        pages, self.free_list = self.free_list[:n], self.free_list[n:]
        self._hand_out(pages)
        return pages

    def _hand_out(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.owners[page] = 1
            self.allocated += 1
        self.peak = max(self.peak, self.used)

    def give_back(self, pages: Iterable[int]) -> int:
        """One owner less for each; those that reach zero go where this order puts them."""
        count = 0
        for page in pages:
            self.owners[page] -= 1
            if self.owners[page] == 0:
                count += 1
                if self.order == "sorted":
                    self.released.add(page)
                elif self.order == "fifo":
                    self.free_list.append(page)
                else:
                    self.free_list.insert(0, page)
        self.freed += count
        return count

    def merge_released(self) -> None:
        if self.released:
            self.free_list = sorted([*self.free_list, *self.released])
            self.released.clear()
            self.merges += 1
