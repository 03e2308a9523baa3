"""The grid: blocks and threads take turns, in order, reversed, or at random by a seed."""

from __future__ import annotations

from tests.ptx.compiled import (
    bytes_at,
    call_step,
    entry,
    halves_at,
    helper,
    report,
    rows_at,
)
from tests.ptx.layout import (
    SHADOW_FIELDS,
    WARP,
    Block,
    Error,
    Launch,
    Mode,
    Run,
    State,
    Thread,
    Watch,
)
from tests.ptx.warps import pass_barrier, pass_points
from tests.ptx.weak import flush, settle

NEVER = 1 << 62  # accesses until a thread is left
TURNS = 8  # of a block, at most, until another one has its turn


@helper
def draw(L, below):  # type: ignore[no-untyped-def]
    """Return a random number, at least 0 and less than `below`."""
    x = L[Launch.RANDOM]
    x ^= x << 13
    x ^= (x >> 7) & ((1 << 57) - 1)
    x ^= x << 17
    L[Launch.RANDOM] = x
    return ((x >> 20) & ((1 << 40) - 1)) % below


@helper
def threads_of(L, B):  # type: ignore[no-untyped-def]
    """Return the threads of a block that is under way."""
    size = L[Launch.BLOCK] * L[Launch.THREAD_WORDS]
    at = L[Launch.THREADS] + B[Block.SLOT] * size * 8
    return rows_at(at, L[Launch.BLOCK], L[Launch.THREAD_WORDS])


@helper
def run_thread(L, B, T, thread, quantum, step):  # type: ignore[no-untyped-def]
    """Run a thread to its next point; False after a failure."""
    me = T[thread]
    me[Thread.QUANTUM] = quantum
    how = call_step(step, L.ctypes.data, B.ctypes.data, me.ctypes.data)
    if how == Run.YIELD:
        return True
    B[Block.READY] -= 1
    if how == Run.DONE:
        me[Thread.STATE] = State.EXITED
        B[Block.LIVE] -= 1
    elif how == Run.BARRIER:
        me[Thread.STATE] = State.AT_BARRIER
        B[Block.WAITING] += 1
    elif how == Run.WARP:
        me[Thread.STATE] = State.AT_WARP
    else:
        return False
    return True


@helper
def begin_block(L, B, slot, template):  # type: ignore[no-untyped-def]
    """Give a block room for its threads and its shared memory."""
    size = L[Launch.SHARED_BYTES]
    words = (size >> 2) * SHADOW_FIELDS * 4
    B[Block.SLOT] = slot
    B[Block.SHARED] = L[Launch.SHARED] + slot * size
    B[Block.WRITTEN] = L[Launch.WRITTEN] + slot * size
    B[Block.SHADOW] = L[Launch.SHADOWS] + slot * words
    B[Block.LIVE] = B[Block.READY] = L[Launch.BLOCK]
    bytes_at(B[Block.SHARED], size)[:] = 0xA5
    bytes_at(B[Block.WRITTEN], size)[:] = template
    halves_at(B[Block.SHADOW], size >> 2, SHADOW_FIELDS)[:] = 0
    T = threads_of(L, B)
    T[:, : Thread.REGISTERS] = 0
    for n in range(L[Launch.BLOCK]):
        T[n, Thread.ID] = n


@helper
def end_block(L, B):  # type: ignore[no-untyped-def]
    """Count what a block has done."""
    T = threads_of(L, B)
    for n in range(L[Launch.BLOCK]):
        done, accesses = T[n, Thread.INSTRUCTIONS], T[n, Thread.ACCESSES]
        L[Launch.INSTRUCTIONS] += done
        L[Launch.MOST_INSTRUCTIONS] = max(L[Launch.MOST_INSTRUCTIONS], done)
        L[Launch.MOST_ACCESSES] = max(L[Launch.MOST_ACCESSES], accesses)
    if L[Launch.WATCH] & Watch.WEAK:
        settle(L, B, T)


@helper
def meet_or_fail(L, B, T):  # type: ignore[no-untyped-def]
    """No thread can go on by itself: pass the barrier, or it is a deadlock."""
    if B[Block.WAITING] == B[Block.LIVE]:
        return pass_barrier(L, B, T)
    report(L, B, -1, Error.DEADLOCK, 0, B[Block.LIVE], L[Launch.BLOCK], B[Block.SLOT])
    return False


@helper
def run_warp(L, B, T, warp, down, step):  # type: ignore[no-untyped-def]
    """Run a warp until it waits for others; return whether it moved, or -1 after a failure."""
    lanes, moved, again = min(WARP, L[Launch.BLOCK] - warp * WARP), 0, 1
    while again > 0:
        for i in range(lanes):
            thread = warp * WARP + (lanes - 1 - i if down else i)
            while T[thread, Thread.STATE] == State.READY:
                moved = 1
                if not run_thread(L, B, T, thread, NEVER, step):
                    return -1
        again = pass_points(L, B, T, warp)
        if again < 0:
            return -1
        moved |= again
    return moved


@helper
def run_in_order(L, B, down, step):  # type: ignore[no-untyped-def]
    """Run a block, warp by warp; False after a failure."""
    T = threads_of(L, B)
    warps = (L[Launch.BLOCK] + WARP - 1) // WARP
    while B[Block.LIVE]:
        moved = 0
        for k in range(warps):
            done = run_warp(L, B, T, warps - 1 - k if down else k, down, step)
            if done < 0:
                return False
            moved |= done
        if B[Block.LIVE] and not moved and not meet_or_fail(L, B, T):
            return False
    return True


@helper
def lanes_at_random(L, B, T, warp, step):  # type: ignore[no-untyped-def]
    """Run the lanes of a warp that can, or some; return how many could, or -1 after a failure."""
    lanes = min(WARP, L[Launch.BLOCK] - warp * WARP)
    at, stride = draw(L, lanes), 1 if draw(L, 2) else lanes - 1
    some, found = draw(L, 4) == 0, 0
    for _ in range(lanes):
        thread = warp * WARP + at
        at = (at + stride) % lanes
        if T[thread, Thread.STATE] != State.READY:
            continue
        found += 1
        if some and draw(L, 2):
            continue
        if not run_thread(L, B, T, thread, draw(L, 2 * L[Launch.QUANTUM]), step):
            return -1
    return found


@helper
def turn(L, B, step):  # type: ignore[no-untyped-def]
    """Let one warp of a block go on, drawn at random; False after a failure."""
    T = threads_of(L, B)
    warps = (L[Launch.BLOCK] + WARP - 1) // WARP
    if B[Block.READY]:
        warp, found = draw(L, warps), 0
        while not found:
            found = lanes_at_random(L, B, T, warp, step)
            if found < 0:
                return False
            if not found:
                warp = (warp + 1) % warps
        return pass_points(L, B, T, warp) >= 0
    passed = 0
    for warp in range(warps):
        done = pass_points(L, B, T, warp)
        if done < 0:
            return False
        passed |= done
    return bool(passed) or not B[Block.LIVE] or meet_or_fail(L, B, T)


@helper
def grid_in_order(L, blocks, template, step):  # type: ignore[no-untyped-def]
    """Run one block after the other; False after a failure."""
    down = L[Launch.MODE] == Mode.REVERSED
    grid = L[Launch.GRID]
    for k in range(grid):
        B = blocks[grid - 1 - k if down else k]
        begin_block(L, B, 0, template)
        fine = run_in_order(L, B, down, step)
        end_block(L, B)
        if not fine:
            return False
    return True


@helper
def grid_at_random(L, blocks, running, order, template, step):  # type: ignore[no-untyped-def]
    """Run some blocks at once, which take turns; False after a failure."""
    grid, count, following = L[Launch.GRID], 0, 0
    for i in range(grid):
        j = draw(L, i + 1)
        order[i] = order[j]
        order[j] = i
    while True:
        while count < L[Launch.RESIDENT] and following < grid:
            # As many are under way as have begun and not ended: `count` names a free place.
            B = blocks[order[following]]
            begin_block(L, B, running[count] & 0xFFFF, template)
            running[count] = (order[following] << 16) | (running[count] & 0xFFFF)
            count, following = count + 1, following + 1
        if not count:
            return True
        k = draw(L, count)
        B = blocks[running[k] >> 16]
        for _ in range(1 + draw(L, TURNS)):
            if not B[Block.LIVE]:
                break
            if not turn(L, B, step):
                end_block(L, B)
                return False
        if not B[Block.LIVE]:
            end_block(L, B)
            count -= 1
            running[k], running[count] = running[count], running[k]


@entry("int64(int64[::1], int64[:, ::1], int64[::1], int64[::1], uint8[::1], int64)")
def run_grid(L, blocks, running, order, template, step):  # type: ignore[no-untyped-def]
    """Run a launch to its end; return 1, or 0 after a failure."""
    for n in range(L[Launch.GRID]):
        blocks[n] = 0
        blocks[n, Block.ID] = n
    if L[Launch.MODE] == Mode.RANDOM:
        fine = grid_at_random(L, blocks, running, order, template, step)
    else:
        fine = grid_in_order(L, blocks, template, step)
    if L[Launch.WATCH] & Watch.WEAK:
        start = draw(L, L[Launch.GRID])
        for n in range(L[Launch.GRID]):
            flush(L, blocks[(start + n) % L[Launch.GRID], Block.STORED])
    return int(fine and L[Launch.ERROR] == 0)


@entry("void(int64[::1], int64, int64[::1])")
def start_random(L, seed, running):  # type: ignore[no-untyped-def]
    """Seed the generator, and number the places of blocks."""
    L[Launch.RANDOM] = seed * 0x9E3779B97F4A7C1 + 0x1234567
    if L[Launch.RANDOM] == 0:
        L[Launch.RANDOM] = 1
    for n in range(running.shape[0]):
        running[n] = n
    draw(L, 2)
