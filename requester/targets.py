"""What a task is made of, from files: labelled rows, or rows with real targets that cut points put into buckets.

Cut points are public, so they come from the owner or from the public practice set, never from the test set (docs/adr/0090).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import MAX_CUT, MAX_CUTS
from core.errors import InputError, MalformedError
from core.verification.regression import MICRO, buckets, cuts_from_micro, cuts_to_micro, quantile_cuts
from requester.data import CARRIED, MAX_BYTES, Rows, load_rows, practice_bytes, scale_of
from services.data.arrays import finite_rows, read_arrays
from services.data.loading import is_described
from services.data.loading import load_rows as load_described
from services.data.recipe import recipe_from_bytes
from services.data.stored import public_arrays, recipe_in

__all__ = ["RealRows", "TaskRows", "load_real_rows", "read_task_rows"]

MAX_TARGET: Final = MAX_CUT / MICRO


@dataclass(frozen=True, slots=True, eq=False)
class RealRows:
    """``x`` float64 of shape (n, M), ``y`` float64 of shape (n,), both finite. ``source``: for messages."""

    source: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    scale_micro: int = 0
    recipe: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """As in requester.data.Rows."""

    def bucketed(self, cuts_micro: tuple[int, ...]) -> Rows:
        """The same rows with buckets as labels."""
        labels = buckets(self.y, cuts_from_micro(cuts_micro))
        return Rows(self.source, self.x, labels, scale_micro=self.scale_micro, recipe=self.recipe)

    def to_bytes(self) -> bytes:
        """The public practice set as pools read it: ``.npz`` with x float32 and y float64, no pickle in it."""
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, x=self.x.astype(np.float32), y=self.y, **self.recipe)
        return out.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class TaskRows:
    """A task's test set and practice set with their labels; ``blob`` is what pools get of the practice set."""

    test: Rows
    practice: Rows
    classes: int
    cuts_micro: tuple[int, ...]
    blob: bytes = field(repr=False)

    def warnings(self) -> tuple[str, ...]:
        """What the owner of a regression should know of its buckets."""
        if not self.cuts_micro:
            return ()
        found = []
        counts = np.bincount(self.test.y, minlength=self.classes)
        if not counts.all():
            found.append(f"no test row is in {int((counts == 0).sum())} of {self.classes} buckets: {_list(counts == 0)}")
        if 2 * int(counts.max()) > len(self.test.y):
            found.append(
                f"{int(counts.max())} of {len(self.test.y)} test rows are in bucket {int(counts.argmax())}: a model that "
                "always names it is right as often; other cut points say more"
            )
        return tuple(found)


def read_task_rows(test_set: Path, practice_set: Path, cuts_micro: tuple[int, ...] = (), wanted_buckets: int = 0) -> TaskRows:
    """Both sets of a task. With cut points or a number of buckets, y is real and the task a regression.

    Raises:
        NotFoundError, LimitError, MalformedError, InputError: one sentence with the file, and the row where there is one.
    """
    if not cuts_micro and not wanted_buckets:
        rows, practice = load_rows(test_set), load_rows(practice_set)
        _same_width(rows.features, practice.features, practice.source, rows.source)
        _same_recipe(rows, practice)
        return TaskRows(rows, practice, max(2, rows.classes, practice.classes), (), practice_bytes(practice))
    if cuts_micro and wanted_buckets:
        raise InputError(f"either {len(cuts_micro)} cut points or {wanted_buckets} buckets, not both: cut points make buckets")
    if cuts_micro:
        # The same checks and the same sentences as for cut points that were found.
        cuts = cuts_to_micro(cuts_from_micro(cuts_micro))
    test, public = load_real_rows(test_set), load_real_rows(practice_set)
    _same_width(test.x.shape[1], public.x.shape[1], public.source, test.source)
    _same_recipe(test, public)
    if not cuts_micro:
        if not 2 <= wanted_buckets <= MAX_CUTS + 1:
            raise InputError(f"{wanted_buckets} buckets, must be 2 to {MAX_CUTS + 1}")
        try:
            cuts = cuts_to_micro(quantile_cuts(public.y, wanted_buckets))
        except InputError as error:
            raise InputError(f"{public.source}: {error.message}") from None
    return TaskRows(test.bucketed(cuts), public.bucketed(cuts), len(cuts) + 1, cuts, public.to_bytes())


def load_real_rows(path: Path) -> RealRows:
    """``x`` (n, M) and real ``y`` (n,) of an ``.npz`` file or a descriptor; nothing is unpickled. Raises as read_task_rows."""
    if is_described(path):
        made = load_described(path)
        return _checked_targets(
            str(path), made.x.astype(np.float64), made.y.astype(np.float64), scale_of(made.recipe),
            public_arrays(made.recipe, made.projection),
        )  # fmt: skip
    arrays = read_arrays(path, "x", "y", optional=CARRIED, limit=MAX_BYTES)
    x, y = arrays.pop("x"), arrays.pop("y")
    floats = finite_rows(path, x, np.float64)
    if not floats.size:
        raise MalformedError(f"{path}: x is empty, its shape is {x.shape}")
    if y.dtype.kind not in "fiu" or y.shape != x.shape[:1]:
        raise MalformedError(f"{path}: y must be a number for each of {len(x)} rows, it is {y.dtype} of {y.shape}")
    targets = y.astype(np.float64)
    stored = recipe_in(path) if "recipe" in arrays else None
    return _checked_targets(str(path), floats, targets, scale_of(stored[0]) if stored is not None else 0, arrays)


def _checked_targets(
    source: str, x: NDArray[np.float64], y: NDArray[np.float64], scale: int, recipe: Mapping[str, NDArray[np.generic]]
) -> RealRows:
    if (wrong := ~(np.abs(y) <= MAX_TARGET)).any():
        row = int(np.flatnonzero(wrong)[0])
        raise MalformedError(f"{source}: row {row}: target {y[row]} is not a number within {MAX_TARGET:g} of 0", row=row)
    return RealRows(source, x, y, scale, recipe)


def _same_width(test: int, practice: int, practice_source: str, test_source: str) -> None:
    if test != practice:
        raise MalformedError(f"{practice_source}: {practice} features a row, {test_source} has {test}")


def _same_recipe(test: Rows | RealRows, practice: Rows | RealRows) -> None:
    """Both sets made by one rule, or both without one. Raises MalformedError."""
    found = [rows.recipe.get("recipe") for rows in (test, practice)]
    said = [None if stored is None else recipe_from_bytes(stored.tobytes(), "the recipe").digest.hex()[:8] for stored in found]
    if said[0] == said[1]:
        return
    if None in said:
        has, lacks = (practice, test) if said[0] is None else (test, practice)
        raise MalformedError(
            f"{lacks.source} has no recipe, {has.source} has {said[0] or said[1]}...: make both from descriptors with this "
            "[recipe] (`pofl data convert`), so that their features are the same ones"
        )
    raise MalformedError(
        f"{practice.source} and {test.source} have different recipes, {said[1]}... and {said[0]}..., so their features are not "
        "the same ones: `pofl data inspect` prints the digest of each"
    )


def _list(chosen: NDArray[np.bool_]) -> str:
    numbers = np.flatnonzero(chosen).tolist()
    return ", ".join(map(str, numbers[:10])) + (" and more" if len(numbers) > 10 else "")
