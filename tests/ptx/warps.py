"""Where threads meet: points of a warp, passed by the lanes of their mask; barriers of a block."""

from __future__ import annotations

from tests.ptx.compiled import helper, report
from tests.ptx.layout import WARP, Block, Error, Kind, Launch, State, Thread, Watch
from tests.ptx.races import race_barrier
from tests.ptx.weak import settle


@helper
def lanes_of(L, T, warp, state):  # type: ignore[no-untyped-def]
    """Return which lanes of a warp are in a state; -1: which there are."""
    made = 0
    for lane in range(min(WARP, L[Launch.BLOCK] - warp * WARP)):
        if state < 0 or T[warp * WARP + lane, Thread.STATE] == state:
            made |= 1 << lane
    return made


@helper
def same_point(L, B, T, warp, first, need):  # type: ignore[no-untyped-def]
    """Return which lanes of `need` wait where `first` does; -1 where one waits elsewhere."""
    me, here = T[warp * WARP + first], 0
    for lane in range(WARP):
        if not (need >> lane) & 1:
            continue
        other = T[warp * WARP + lane]
        if other[Thread.STATE] != State.AT_WARP:
            continue
        kind = me[Thread.KIND]
        elsewhere = other[Thread.SITE] != me[Thread.SITE] and kind != Kind.WARP_SYNC
        if elsewhere or other[Thread.MASK] != me[Thread.MASK] or other[Thread.KIND] != kind:
            line, mask = me[Thread.SITE], me[Thread.MASK]
            report(L, B, me[Thread.ID], Error.MASKS_DIFFER, line, mask, lane, other[Thread.SITE])
            return -1
        here |= 1 << lane
    return here


@helper
def shuffle_source(me, lane):  # type: ignore[no-untyped-def]
    """Return the lane that a shuffle reads, and whether it lies within its segment."""
    segment, clamp, by = (me[Thread.C] >> 8) & 31, me[Thread.C] & 31, me[Thread.B] & 31
    low = lane & segment
    top = low | (clamp & ~segment)
    kind = me[Thread.KIND]
    if kind == Kind.SHFL_UP:
        source = lane - by
        inside = source >= top
    else:
        if kind == Kind.SHFL_DOWN:
            source = lane + by
        elif kind == Kind.SHFL_BFLY:
            source = lane ^ by
        else:
            source = low | (by & ~segment)
        inside = source <= top
    return (source if inside else lane), inside


@helper
def vote_result(T, warp, here, me):  # type: ignore[no-untyped-def]
    """Return what a vote or a match of the lanes in `here` gives to one of them."""
    votes, kind = 0, me[Thread.KIND]
    for lane in range(WARP):
        if (here >> lane) & 1:
            value = T[warp * WARP + lane, Thread.A]
            yes = value == me[Thread.A] if kind == Kind.MATCH_ANY else value != 0
            votes |= int(yes) << lane
    if kind == Kind.VOTE_ANY:
        return int(votes != 0)
    if kind == Kind.VOTE_ALL:
        return int(votes == here)
    if kind == Kind.VOTE_UNI:
        return int(votes == here or votes == 0)
    return votes


@helper
def let_pass(L, B, T, warp, here):  # type: ignore[no-untyped-def]
    """Give the lanes in `here` their results, and let them go on; False after a failure."""
    for lane in range(WARP):
        if not (here >> lane) & 1:
            continue
        me = T[warp * WARP + lane]
        if Kind.SHFL_UP <= me[Thread.KIND] <= Kind.SHFL_IDX:
            source, inside = shuffle_source(me, lane)
            if not (here >> source) & 1:
                line = me[Thread.SITE]
                report(L, B, me[Thread.ID], Error.SHUFFLE_FROM, line, source, me[Thread.MASK], 0)
                return False
            me[Thread.RESULT] = T[warp * WARP + source, Thread.A]
            me[Thread.FLAG] = inside
        elif me[Thread.KIND] != Kind.WARP_SYNC:
            me[Thread.RESULT] = vote_result(T, warp, here, me)
    for lane in range(WARP):
        if (here >> lane) & 1:
            T[warp * WARP + lane, Thread.STATE] = State.READY
            B[Block.READY] += 1
    L[Launch.MEETINGS] += 1
    return True


@helper
def pass_points(L, B, T, warp):  # type: ignore[no-untyped-def]
    """Let lanes go on that have all come; return whether there were any, or -1: a failure."""
    waiting = lanes_of(L, T, warp, State.AT_WARP)
    if not waiting:
        return 0
    there = lanes_of(L, T, warp, -1)
    live = there & ~lanes_of(L, T, warp, State.EXITED)
    passed = 0
    while waiting:
        first = 0
        while not (waiting >> first) & 1:
            first += 1
        me = T[warp * WARP + first]
        mask, line = me[Thread.MASK], me[Thread.SITE]
        if not (mask >> first) & 1:
            return report(L, B, me[Thread.ID], Error.NOT_IN_MASK, line, mask, 0, 0) - 1
        if mask & ~there:
            return report(L, B, me[Thread.ID], Error.MASK_OUTSIDE, line, mask, there, 0) - 1
        if mask & ~live:
            return report(L, B, me[Thread.ID], Error.MASK_EXITED, line, mask, live, 0) - 1
        here = same_point(L, B, T, warp, first, mask)
        if here < 0:
            return -1
        waiting &= ~here
        if here == mask:
            if not let_pass(L, B, T, warp, here):
                return -1
            passed = 1
    return passed


@helper
def pass_barrier(L, B, T):  # type: ignore[no-untyped-def]
    """Let a block go on whose live threads have all come to a barrier; False after a failure."""
    kind, site, some, every, count = -1, 0, 0, 1, 0
    for n in range(L[Launch.BLOCK]):
        me = T[n]
        if me[Thread.STATE] == State.EXITED:  # a barrier waits for those that have not
            continue
        if kind < 0:
            kind, site = me[Thread.KIND], me[Thread.SITE]
        if me[Thread.KIND] != kind:
            report(L, B, n, Error.BARRIER_KINDS, me[Thread.SITE], site, 0, 0)
            return False
        lead = T[n & ~(WARP - 1)]
        if lead[Thread.STATE] == State.AT_BARRIER and me[Thread.SITE] != lead[Thread.SITE]:
            report(L, B, n, Error.BARRIER_LINES, me[Thread.SITE], lead[Thread.SITE], 0, 0)
            return False
        if me[Thread.A]:
            some, count = 1, count + 1
        else:
            every = 0
    for n in range(L[Launch.BLOCK]):
        if T[n, Thread.STATE] == State.EXITED:
            continue
        T[n, Thread.STATE] = State.READY
        result = some if kind == Kind.BAR_OR else every if kind == Kind.BAR_AND else count
        T[n, Thread.RESULT] = result
    B[Block.READY], B[Block.WAITING] = B[Block.LIVE], 0
    if L[Launch.WATCH] & Watch.RACE:
        race_barrier(L, B)
    if L[Launch.WATCH] & Watch.WEAK:
        settle(L, B, T)
    B[Block.EPOCH] += 1
    L[Launch.BARRIERS] += 1
    return True
