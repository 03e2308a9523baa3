"""Loops of a mirror of block tables: what has changed since it was told last, as one message.

A message is flat `int32`: a header of `HEADER_WORDS`, then records of `RECORD_WORDS`, both by the
constants below, then the page ids of all records. A record is about one row; of a row with very
many new ids there are several, so that no warp of a GPU has to copy all of them.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit
from jitalloc._jit import helper, kernel
from jitalloc.sequences.loops.tables import (
    tables_column,
    tables_pages,
    tables_pages_of,
    tables_taken,
)
from jitalloc.sequences.state import LENGTH, MAX_PAGES, NUM_ROWS
from jitalloc.state import NULL

HEADER_WORDS = 4
RECORDS = 0  # in the header: how many there are
ROWS = 1  # in the header: how many rows they are about

RECORD_WORDS = 6
ROW = 0
TOKENS = 1  # length of the sequence, or a constant below
FIRST = 2  # the first page of the row that this record is about
COUNT = 3  # how many ids from there on are in the message
NULLS = 4  # how many behind those are NULL now
START = 5  # where the ids of this record begin, among those of all

NOBODY = -1  # in place of a length: no sequence lives in the row
LATER = -2  # in place of a length: it stands in the last record of the row

PART = 256  # most ids of a record
CHUNK = 128  # ids compared at once: 44 us for 1,024 rows of 500, and 100 where it is 32


@helper
def first_change(mine, theirs):
    """Return the first element that differs in two arrays of one size, or the size."""
    done = np.int64(0)
    while done < mine.size:
        a, b = mine[done : done + CHUNK], theirs[done : done + CHUNK]
        differ = np.int32(0)
        for j in range(a.size):  # without a branch, so that it vectorises
            differ |= a[j] ^ b[j]
        if differ != 0:
            while mine[done] == theirs[done]:
                done += 1
            return done
        done += a.size
    return done


@helper
def write_record(message, records, record):
    """Write `(row, tokens, first, count, nulls, start)`, where the message has room for it."""
    at = HEADER_WORDS + records * RECORD_WORDS
    if at + RECORD_WORDS <= message.size:
        row, tokens, first, count, nulls, start = record
        message[at + ROW] = row
        message[at + TOKENS] = tokens
        message[at + FIRST] = first
        message[at + COUNT] = count
        message[at + NULLS] = nulls
        message[at + START] = start


@helper
def find_changes(tables, sent, message, anew):
    """Write a record for each row that is not as `sent`; return `(rows, records, ids)`.

    The ids themselves are not written. `anew`: 1 where nothing of what was sent counts.
    """
    taken, was_taken = tables_taken(tables), tables_taken(sent)
    length, was_length = tables_column(tables, LENGTH), tables_column(sent, LENGTH)
    pages, was_pages = tables_pages(tables), tables_pages(sent)
    width = tables[MAX_PAGES]
    rows, records, ids = np.int64(0), np.int64(0), np.int64(0)
    for row in range(tables[NUM_ROWS]):
        lives = taken[row >> 6] & bit(row) != np.uint64(0)
        lived = was_taken[row >> 6] & bit(row) != np.uint64(0)
        if not (lives or lived or anew != 0):
            continue
        count = tables_pages_of(tables, length[row])
        before, first = width, np.int64(0)
        if anew == 0:
            before = tables_pages_of(tables, was_length[row])
            start, stop = row * width, row * width + min(count, before)
            first = first_change(pages[start:stop], was_pages[start:stop])
            same = lives == lived and length[row] == was_length[row]
            if same and first == count:
                continue
        rows += 1
        tokens = length[row] if lives else np.int64(NOBODY)
        while count - first > PART:
            record = np.int64(row), np.int64(LATER), first, np.int64(PART), np.int64(0), ids
            write_record(message, records, record)
            records += 1
            ids += PART
            first += PART
        nulls = max(before - count, np.int64(0))
        record = np.int64(row), tokens, first, count - first, nulls, ids
        write_record(message, records, record)
        records += 1
        ids += count - first
    return rows, records, ids


@kernel("int64(int64[::1], int64[::1], int32[::1], int64)")
def mirror_pack_cpu(tables, sent, message, anew):
    """Mutates `message`, what brings a copy from `sent` to `tables`, and `sent`, which has been
    told then. Where the message is too short, nothing is told.

    Reads `tables`, requires that nobody changes them; `anew`: 1 where nothing of what was sent
    counts. Returns the words that the message takes.
    """
    # Which rows have changed, and where?
    rows, records, ids = find_changes(tables, sent, message, anew)
    base = HEADER_WORDS + records * RECORD_WORDS
    if base + ids > message.size:
        return base + ids
    message[RECORDS] = records
    message[ROWS] = rows
    # The ids of each record go into the message, and all of it into `sent`.
    taken, length, width = tables_taken(sent), tables_column(sent, LENGTH), tables[MAX_PAGES]
    pages, was_pages = tables_pages(tables), tables_pages(sent)
    for k in range(records):
        record = HEADER_WORDS + k * RECORD_WORDS
        row, tokens = np.int64(message[record + ROW]), np.int64(message[record + TOKENS])
        at = row * width + message[record + FIRST]
        put, count = base + message[record + START], np.int64(message[record + COUNT])
        for j in range(count):
            message[put + j] = pages[at + j]
            was_pages[at + j] = pages[at + j]
        for j in range(count, count + message[record + NULLS]):
            was_pages[at + j] = NULL
        if tokens != LATER:
            length[row] = max(tokens, np.int64(0))
            taken[row >> 6] &= ~bit(row)
            if tokens != NOBODY:
                taken[row >> 6] |= bit(row)
    return base + ids
