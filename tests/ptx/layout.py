"""Where things stand in the memory that native code and the scheduler share: words of 8 bytes."""

from __future__ import annotations

from enum import IntEnum

WARP = 32
GUARD_BYTES = 64  # between shared arrays


class Launch(IntEnum):
    """Words of a launch."""

    GRID = 0
    BLOCK = 1
    MODE = 2
    WATCH = 3
    LIMIT = 4  # instructions of a thread
    POISON = 5  # what an undefined register holds
    QUANTUM = 6  # mean number of global accesses until a thread is left
    PARAMS = 7  # addresses from here on
    RANGES = 8
    SITES = 9
    COUNTS = 10
    BLOCKS = 11
    THREADS = 12
    SHARED = 13
    WRITTEN = 14
    SHADOWS = 15  # of shared memory
    GLOBAL_CHECK = 16  # functions
    SHARED_CHECK = 17
    WATCH_LOAD = 18
    WATCH_STORE = 19
    WATCH_ATOMIC = 20
    WATCH_FENCE = 21
    NUM_RANGES = 22
    SHARED_BYTES = 23
    THREAD_WORDS = 24
    RESIDENT = 25  # blocks that are under way at once
    RANDOM = 26  # state of the generator
    ERROR = 27  # an `Error`, its place, and what it tells
    ERROR_LINE = 28
    ERROR_BLOCK = 29
    ERROR_THREAD = 30
    ERROR_A = 31
    ERROR_B = 32
    ERROR_C = 33
    INSTRUCTIONS = 34
    MOST_INSTRUCTIONS = 35
    MOST_ACCESSES = 36
    BARRIERS = 37
    MEETINGS = 38  # points of warps that were passed
    NOTES = 39  # races
    NUM_NOTES = 40
    RACES = 41
    SPANS = 42  # ranges without overlap, with the place of each in what follows
    NUM_SPANS = 43
    GLOBAL_SHADOWS = 44
    CLOCKS = 45  # of blocks: three for each
    LOCATIONS = 46  # of atomics: hash table of words to clocks
    LOCATION_ROOM = 47
    LOCATION_CLOCKS = 48
    NUM_LOCATIONS = 49
    WEAK = 50  # hash table of (block, word)
    WEAK_ROOM = 51
    NUMBER = 52  # no other launch has it
    WORDS = 53


class Block(IntEnum):
    """Words of a block."""

    ID = 0
    LIVE = 1  # threads that have not exited
    READY = 2
    WAITING = 3  # at a barrier
    EPOCH = 4  # barriers passed
    FENCED = 5  # fences since the last one
    PUBLISHED = 6  # epochs that a fence of all threads came behind
    PENDING = 7  # whether an atomic has read clocks of others
    SLOT = 8
    SHARED = 9  # addresses
    WRITTEN = 10
    SHADOW = 11
    STORED = 12  # chain of what its threads have stored before the last barrier; see `weak`
    GENERATION = 13  # of what it has read
    WORDS = 14


class Thread(IntEnum):
    """Words of a thread; its registers follow."""

    INSTRUCTIONS = 0
    ACCESSES = 1  # of global memory
    PC = 2
    STATE = 3
    KIND = 4
    SITE = 5  # line of the point where it waits
    A = 6  # operands of that instruction
    B = 7
    C = 8
    MASK = 9
    RESULT = 10
    FLAG = 11
    QUANTUM = 12
    ID = 13
    FENCES = 14
    FENCE_EPOCH = 15
    ACQUIRED_EPOCH = 16
    STORED = 17  # chain of what it has stored since the last barrier; see `weak`
    REGISTERS = 18


class Run(IntEnum):
    """What the native function returns."""

    DONE = 0
    BARRIER = 1
    WARP = 2
    YIELD = 3
    ERROR = 4


class State(IntEnum):
    """Of a thread."""

    READY = 0
    AT_BARRIER = 1
    AT_WARP = 2
    EXITED = 3


class Kind(IntEnum):
    """Of a point where threads meet."""

    BAR_SYNC = 0
    BAR_OR = 1
    BAR_AND = 2
    BAR_POPC = 3
    SHFL_UP = 4
    SHFL_DOWN = 5
    SHFL_BFLY = 6
    SHFL_IDX = 7
    VOTE_BALLOT = 8
    VOTE_ANY = 9
    VOTE_ALL = 10
    VOTE_UNI = 11
    MATCH_ANY = 12
    WARP_SYNC = 13


class Mode(IntEnum):
    """How blocks and threads take turns."""

    ORDER = 0
    REVERSED = 1
    RANDOM = 2


class Watch(IntEnum):
    """What launches are looked at for."""

    RACE = 1
    WEAK = 2


class Error(IntEnum):
    """Why a launch ended early."""

    NONE = 0
    DIVISION = 1
    ENDLESS = 2
    TRAP = 3
    RAN_OFF = 4
    GLOBAL_ALIGN = 5
    GLOBAL_BOUNDS = 6
    SHARED_ALIGN = 7
    SHARED_BOUNDS = 8
    SHARED_UNWRITTEN = 9
    NOT_IN_MASK = 10
    MASK_OUTSIDE = 11
    MASK_EXITED = 12
    MASKS_DIFFER = 13
    SHUFFLE_FROM = 14
    BARRIER_KINDS = 15
    BARRIER_LINES = 16
    DEADLOCK = 17


class Table(IntEnum):
    """Words of an entry of the hash table of weak memory."""

    KEY = 0  # word and block, plus one
    VALUE = 1
    MASK = 2  # bytes stored that nobody else sees yet
    WRITER = 3
    EPOCH = 4
    NEXT = 5  # of its chain: a place plus one; -1 of the last one, 0 in no chain
    READ = 6  # generation in which it was read, plus one
    SEEN = 7  # what was read then
    LAUNCH = 8  # which one the entry is of; that of another counts as none
    WORDS = 9


# Of four bytes: the last write and three reads, each of these fields; valid if BLOCK > 0.
STAMP_FIELDS = 5  # block plus one, epoch, thread, line, atomic
STAMPS = 4
SHADOW_FIELDS = STAMP_FIELDS * STAMPS + 1  # and which read goes next
CLOCK_FIELDS = 3  # epochs that are over for all, and those of one thread: its number, its epoch
NOTE_FIELDS = 16
MOST_NOTES = 256

# For Numba, which takes no member of an enumeration as the shape of an array.
LAUNCH_WORDS = int(Launch.WORDS)
BLOCK_WORDS = int(Block.WORDS)
THREAD_HEAD = int(Thread.REGISTERS)
TABLE_WORDS = int(Table.WORDS)
