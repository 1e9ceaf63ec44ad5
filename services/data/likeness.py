"""Whether rows can be learnt from along with others: the classes that they lack, and whether they fit a task's practice set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import MalformedError
from services.data.fields import listed
from services.data.rows import Rows

__all__ = ["check_alike", "thin_classes"]

FAR = 10.0
"""Features so many times larger than another set's largest are in another unit."""


def check_alike(rows: Rows, practice: Rows) -> list[str]:
    """What a member wants to know before joining a pool: rows made by the practice set's recipe, as wide, of its classes.

    Returns what is doubtful and cannot be decided, in words. Raises MalformedError with both files and the difference.
    """
    both = f"{rows.source} and {practice.source}"
    mine, wanted = rows.recipe, practice.recipe
    if mine is not None and wanted is not None and mine.digest != wanted.digest:
        raise MalformedError(
            f"{both} are made by different recipes, {mine.digest.hex()[:16]} and {wanted.digest.hex()[:16]}: put the [recipe] "
            f"that `pofl data recipe {practice.source}` prints into your descriptor"
        )
    if rows.features != practice.features:
        raise MalformedError(f"{both} have rows of different width: {rows.features} and {practice.features} features")
    kinds = ["real targets" if r.y.dtype.kind == "f" else "classes" for r in (rows, practice)]
    if kinds[0] != kinds[1]:
        raise MalformedError(f"{both} have different labels: {kinds[0]} and {kinds[1]}")
    doubts = []
    if kinds[0] == "classes" and (beyond := np.flatnonzero(rows.y >= practice.classes)).size:
        row = int(beyond[0])
        text = f"row {row} of {rows.source} has label {rows.y[row]}, {practice.source} has classes 0 to {practice.classes - 1}"
        if wanted is not None:
            raise MalformedError(text, row=row)
        doubts.append(text)
    if mine is None or wanted is None:
        lacks = " and ".join(r.source for r in (rows, practice) if r.recipe is None)
        doubts.append(f"no recipe in {lacks}: whether the features are made alike cannot be told")
        largest = [float(np.abs(r.x).max()) for r in (rows, practice)]
        if max(largest) > FAR * min(largest):
            doubts.append(f"the largest feature is {largest[0]:.4g}, in {practice.source} {largest[1]:.4g}: another unit?")
    return doubts


def thin_classes(counts: Sequence[int], names: Sequence[str]) -> str:
    """Classes of one row or none, in words: ``class 9 has one row, classes 3 to 8 none``; empty if there are none such."""
    one, none = ([label for label, count in enumerate(counts) if count == wanted] for wanted in (1, 0))
    parts = []
    if one:
        parts.append(f"{_classes(one, names)} {'has' if len(one) == 1 else 'have'} one row")
    if none:
        verb = "" if one else "has " if len(none) == 1 else "have "
        parts.append(f"{_classes(none, names)} {verb}{'none' if one else 'no row'}")
    return ", ".join(parts)


def _classes(labels: Sequence[int], names: Sequence[str]) -> str:
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][1] + 1:
            runs[-1][1] = label
        else:
            runs.append([label, label])
    told = []
    for low, high in runs:
        if high - low < 2:
            told += [names[label] for label in range(low, high + 1)]
        else:
            told.append(f"{names[low]} to {names[high]}")
    return f"{'class' if len(labels) == 1 else 'classes'} {listed(told, most=10)}"
