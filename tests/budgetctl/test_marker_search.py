"""Markers found in all columns at once are those that a plain search finds."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.marker_search import find_markers, marker_progress, match_lengths

TOKENS = st.integers(0, 3)
MARKER = st.lists(TOKENS, min_size=1, max_size=4).map(tuple)
#: -1 stands for padding of another kind.
ROWS = st.integers(1, 9).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-1, 3), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


def ends_at(row: list[int], column: int, marker: tuple[int, ...], begin: int = 0) -> bool:
    first = column + 1 - len(marker)
    return first >= begin and tuple(row[first : column + 1]) == marker


@given(ROWS, st.lists(MARKER, min_size=1, max_size=5), st.data())
def test_markers_and_the_longest_of_them(
    rows: list[list[int]], markers: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """Of one token and of several, one the end of another, the same one twice, and none that fits."""
    ids, width = torch.tensor(rows), len(rows[0])
    found = find_markers(ids, tuple(markers))
    assert found.tolist() == [
        [[ends_at(row, column, marker) for column in range(width)] for row in rows] for marker in markers
    ]
    begin = [data.draw(st.integers(0, width)) for _ in rows]
    lengths = match_lengths(ids, (*markers, ()), torch.tensor(begin))
    assert lengths.tolist() == [
        [
            max((len(m) for m in markers if ends_at(row, column, m, first)), default=0)
            for column in range(width)
        ]
        for row, first in zip(rows, begin, strict=True)
    ]


@given(ROWS, MARKER, st.data())
def test_progress_in_a_marker(rows: list[list[int]], marker: tuple[int, ...], data: st.DataObject) -> None:
    width = len(rows[0])
    begin = [data.draw(st.integers(0, width)) for _ in rows]
    counted = [data.draw(st.booleans()) for _ in rows]

    def progress(row: list[int], first: int) -> int:
        sizes = range(1, len(marker))
        return max((n for n in sizes if ends_at(row, width - 1, marker[:n], first)), default=0)

    arguments: Any = (torch.tensor(rows), marker, torch.tensor(begin), torch.tensor(counted))
    expected = [
        progress(row, first) if asked else 0 for row, first, asked in zip(rows, begin, counted, strict=True)
    ]
    assert marker_progress(*arguments).tolist() == expected


def test_no_marker_at_all() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    assert find_markers(ids, ()).shape == (0, 2, 3)
    assert not match_lengths(ids, ((),), torch.zeros(2, dtype=torch.int64)).any()
