"""services.data: every kind of file gives the rows that are in it, and a wrong one a sentence with the place of the fault."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError, LimitError, MalformedError, NotFoundError
from services.data import cifar, limits, tables
from services.data.descriptor import read_descriptor
from services.data.loading import load_rows, rows_of
from services.data.recipe import Recipe, TextRule
from services.data.rows import Rows
from tests.data_files import cifar_binary, cifar_pickle, descriptor, idx, packed

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0])
COLOURED = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)

IDX = 'kind = "idx"\nfiles = ["x"]\nlabels = ["y"]\n[recipe]\nraw = "pixels"\nshape = [4, 6]\nclasses = 3\n'
CIFAR = 'kind = "cifar10"\nfiles = ["batch"]\n[recipe]\nraw = "pixels"\nshape = [32, 32, 3]\nclasses = 10\n'
NPZ = """kind = "npz"
files = ["a.npz"]
x = "pictures"
y = "labels"
key = "who"
[recipe]
raw = "numbers"
shape = [2]
classes = 3
"""
CSV = """kind = "csv"
files = ["t.csv"]
target = "out"
key = "who"
[recipe]
raw = "table"
class_names = ["no", "yes"]
missing = ["?"]
bound = 100.0
columns = [
  { name = "age", center = 50.0, scale = 10.0 },
  { name = "dose", fill = 2.0 },
  { name = "race", values = ["a", "b"], other = true },
]
"""
TABLE = "who,age,dose,race,out\nw1,60,1.5,a,no\nw1,40,?,b,yes\nw2,55,,c,yes\n"
TEXT = """kind = "text"
files = ["t.tsv"]
header = false
quoted = false
target = "0"
text = "1"
[recipe]
raw = "text"
class_names = ["ham", "spam"]
text = { method = "tfidf", words = ["free", "hello", "prize"], idf_milli = [2000, 1000, 4000] }
"""


def load(folder: Path, text: str, **files: bytes) -> Rows:
    for name, data in files.items():
        path = folder / name.replace("__", ".")
        packed(path, data)
    return load_rows(descriptor(folder, text))


def test_idx_plain_and_packed(tmp_path: Path) -> None:
    rows = load(tmp_path, IDX, x=idx(IMAGES), y=idx(LABELS.astype(np.uint8)))
    np.testing.assert_array_equal(rows.x, (np.rint(IMAGES.reshape(5, -1) / 255 * 1e6) / 1e6).astype(np.float32))
    np.testing.assert_array_equal(rows.y, LABELS)
    text = IDX.replace('"x"', '"x.gz"').replace('"y"', '"y.gz"')
    again = load(tmp_path, text, x__gz=idx(IMAGES), y__gz=idx(LABELS.astype(np.uint8)))
    assert again.digest == rows.digest
    assert again.recipe == rows.recipe


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (b"", "the magic number should be 4 bytes, the file ends after 0"),
        (b"PK\x03\x04" + bytes(20), "not an idx file: its magic number is 504b0304"),
        (struct.pack(">HBB", 0, 13, 3), "an idx file of float32, only unsigned bytes are read"),
        (struct.pack(">HBB", 0, 8, 1), "an idx file of 1 dimensions, 3 are needed"),
        (idx(IMAGES)[:-1], "an array of 5x4x6 should be 120 bytes, the file ends after 119"),
        (idx(IMAGES) + b"\0", "bytes follow its 5x4x6 values"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "4294967295 rows of 18446744065119617025 bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, 1 << 20, 60, 60), "should be 3774873600 bytes, the file ends after 0"),
        (idx(IMAGES[:, :2]), "rows of shape [2, 6], the recipe has [4, 6]"),
        (idx(IMAGES[:4]), "4 rows and 5 labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_idx_file_is_named_and_takes_no_memory(tmp_path: Path, x: bytes, sentence: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            load(tmp_path, IDX, x=x, y=idx(LABELS.astype(np.uint8)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert sentence in caught.value.message
    assert str(tmp_path / "x") in caught.value.message


def test_a_label_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match=r"y: row 3: label 3, labels are whole numbers from 0 to 2"):
        load(tmp_path, IDX, x=idx(IMAGES), y=idx(np.array([0, 1, 2, 3, 0], dtype=np.uint8)))


def test_a_gzip_bomb_stops_at_what_was_announced(tmp_path: Path) -> None:
    bomb = idx(IMAGES) + bytes(64 << 20)
    with pytest.raises(MalformedError, match="bytes follow its 5x4x6 values"):
        load(tmp_path, IDX.replace('"x"', '"x.gz"'), x__gz=bomb, y=idx(LABELS.astype(np.uint8)))
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(IMAGES))[:-9])
    with pytest.raises(MalformedError, match="not a whole gzip file"):
        load_rows(tmp_path / "data.toml")


@pytest.mark.parametrize("make", [cifar_binary, cifar_pickle])
def test_both_forms_of_cifar(tmp_path: Path, make: Callable[..., bytes]) -> None:
    rows = load(tmp_path, CIFAR, batch=make(COLOURED, np.array([3, 0, 9])))
    np.testing.assert_array_equal(
        rows.x, (np.rint(COLOURED.transpose(0, 3, 1, 2).reshape(3, -1) / 255 * 1e6) / 1e6).astype(np.float32)
    )
    assert rows.y.tolist() == [3, 0, 9]


def test_the_pickle_of_these_tests_is_one_that_python_reads_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core has another name now
        found = pickle.loads(cifar_pickle(COLOURED, np.array([3, 0, 9])), encoding="bytes")
    assert found[b"labels"] == [3, 0, 9]
    assert found[b"data"].shape == (3, 3072)


class Harm:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pickled-and-run",)


def hostile_pickles() -> dict[str, tuple[bytes, str]]:
    good = cifar_pickle(COLOURED, np.array([3, 0, 9]))
    laughs = b"\x80\x02(q\x00t" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) * 1 + b"\x86" for i in range(1, 40))
    nested = b"\x80\x02" + b"".join(b"(h\x01h\x01tq\x01" if i else b")q\x01" for i in range(60)) + b"."
    return {
        "runs a command": (pickle.dumps(Harm(), protocol=2), "it names 'posix system'"),
        "a class of ours": (b"\x80\x02ccore.errors\nPoflError\n(tR.", "it names 'core.errors PoflError'"),
        "calls the array type": (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "it calls what is not the making of an array"),
        "another type of array": (good.replace(b"U\x02u1", b"U\x02O8"), "it calls what is not the making of an array"),
        "protocol 4": (pickle.dumps({b"data": 1}, protocol=4), "a pickle of protocol 4"),
        "persistent ids": (b"\x80\x02Px\n.", "opcode b'P'"),
        "an extension": (b"\x80\x02\x82\x01.", "opcode b'\\x82'"),
        "truncated": (good[: len(good) // 2], "bytes at byte"),
        "empty": (b"\x80", "bytes at byte"),
        "shape that lies": (good.replace(b"M\x00\x0c", b"M\x00\xff"), "an array of 3 x 65280 with 9216 bytes"),
        "negative size": (b"\x80\x02T\xff\xff\xff\xff.", "-1 bytes at byte"),
        "giant string": (b"\x80\x02T\xff\xff\xff\x7f.", "2147483647 bytes at byte"),
        "no stack": (b"\x80\x02R.", "a broken pickle (IndexError"),
        "no memo": (b"\x80\x02h\x05.", "a broken pickle (KeyError"),
        "nested doubles": (nested, "opcode b')'"),
        "tuples as deep as the file is long": (b"\x80\x02N" + b"\x85" * 20_000 + b".", "it must hold an array `data`"),
        "doubled memos": (laughs + b".", "not a CIFAR-10 batch"),
        "labels that are texts": (good.replace(b"]q\x05(K\x03", b"]q\x05(N"), "row 0: the label is no whole number"),
        "a label too high": (good.replace(b"]q\x05(K\x03", b"]q\x05(K\x0b"), "row 0: label 11, labels are 0 to 9"),
        "a list of nothing": (b"\x80\x02].", "it must hold an array `data` and a list `labels`"),
        "something after": (good + b"more", "something follows the dictionary"),
    }


@pytest.mark.parametrize("name", hostile_pickles())
def test_nothing_in_a_pickle_is_run(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, sentence = hostile_pickles()[name]
    with pytest.raises(MalformedError) as caught:
        load(tmp_path, CIFAR, batch=data)
    assert sentence in caught.value.message
    assert str(tmp_path / "batch") in caught.value.message
    assert len(caught.value.message) < 500
    assert not (tmp_path / "pickled-and-run").exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"}" + b"q\x01" * 5_001 + b".", "more than 5000 opcodes"),
        (b"]q\x01" + (b"(" + b"h\x01" * 400 + b"e") * 13 + b".", "more than 5000 opcodes"),
        (b"]q\x01" + b"(" + b"N" * 501 + b"e.", "more than 500 objects"),
        (b"(" * 501 + b".", "more than 500 objects"),
    ],
    ids=["remembers for ever", "a list of itself that grows", "a list without end", "marks"],
)
def test_what_a_pickle_may_cost_is_bounded(tmp_path: Path, data: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of one gigabyte could hold as many opcodes, each a line of Python and eight bytes in a list."""
    monkeypatch.setattr(cifar, "MAX_STEPS", 5_000)
    monkeypatch.setattr(cifar, "MAX_STACK", 500)
    with pytest.raises(MalformedError, match=sentence):
        load(tmp_path, CIFAR, batch=b"\x80\x02" + data)


def test_a_binary_batch_has_whole_records(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="3072 bytes, not whole records of 3073"):
        load(tmp_path, CIFAR, batch=bytes(3072))
    with pytest.raises(MalformedError, match="row 1: label 10, labels are 0 to 9"):
        load(tmp_path, CIFAR, batch=bytes(3073) + b"\x0a" + bytes(3072))


def write_npz(path: Path, **arrays: object) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **arrays)  # type: ignore[arg-type]


def test_npz_with_names_of_its_own(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", pictures=np.array([[1, 2.5], [3, 4]]), labels=np.array([0, 2]), who=np.array([5, 7]))
    rows = load(tmp_path, NPZ)
    assert rows.x.tolist() == [[1, 2.5], [3, 4]]
    assert rows.keys is not None
    assert rows.keys.tolist() == ["5", "7"]
    assert rows.classes == 3


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pictures": np.zeros((1, 2)), "labels": np.zeros(1)}, "no array 'who'; it holds ['labels', 'pictures']"),
        ({"pictures": np.zeros((1, 3))}, "rows of shape [3], the recipe has [2]"),
        ({"pictures": np.array([[0, np.nan]])}, "row 0, value [1]: nan is not a finite number"),
        ({"pictures": np.array([["a", "b"]])}, "they must be numbers"),
        ({"pictures": np.array([[{}, {}]])}, "not an .npz file of plain arrays"),
        ({"labels": np.array([3])}, "row 0: label 3, labels are whole numbers from 0 to 2"),
        ({"labels": np.array([0.5])}, "row 0: label 0.5"),
        ({"labels": np.array([np.nan])}, "row 0: label nan"),
        ({"labels": np.array([0, 1])}, "labels is of shape (2,), pictures of (1, 2)"),
        ({"who": np.array([0.5])}, "who must be texts or whole numbers"),
        (
            {"pictures": np.zeros((0, 2)), "labels": np.zeros(0), "who": np.zeros(0, int)},
            "labels must be whole numbers, one a row",
        ),
    ],
)
def test_wrong_npz_files_are_named(tmp_path: Path, arrays: dict[str, object], sentence: str) -> None:
    good: dict[str, object] = {"pictures": np.zeros((1, 2)), "labels": np.zeros(1, int), "who": np.zeros(1, int)}
    write_npz(tmp_path / "a.npz", **(arrays if "who" in sentence and "no array" in sentence else good | arrays))
    with pytest.raises(MalformedError) as caught:
        load(tmp_path, NPZ)
    assert sentence in caught.value.message
    assert "a.npz" in caught.value.message


def test_npz_bombs_and_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.data.arrays.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pictures.npy", bytes(8 << 20))
    with pytest.raises(LimitError, match="8388608 bytes unpacked, at most 1048576"):
        load(tmp_path, NPZ)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("pictures.npy", head.getvalue())
    with pytest.raises(MalformedError, match=r"not an \.npz file of plain arrays"):
        load(tmp_path, NPZ)


def test_one_long_key_does_not_make_room_for_itself_in_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = TABLE.splitlines(keepends=True)
    long = lines[0] + lines[1].replace("w1", "w" * 257) + "".join(lines[2:])
    assert long.count("w" * 257) == 1
    with pytest.raises(MalformedError, match=r"t\.csv.*line 2.*a key of 257 characters, at most 256"):
        load(tmp_path, CSV, t__csv=long.encode())
    monkeypatch.setattr(limits, "MAX_BYTES", 3 * 4 * 4 + 3 * 4 * 200)
    with pytest.raises(LimitError):
        load(tmp_path, CSV, t__csv=long.replace("w" * 257, "w" * 256).encode())


def test_csv_numbers_categories_missing_and_key(tmp_path: Path) -> None:
    rows = load(tmp_path, CSV, t__csv=TABLE.encode())
    assert rows.x.tolist() == [[1, 1.5, 1, 0], [-1, 2, 0, 1], [0.5, 2, 0, 0]]
    assert rows.y.tolist() == [0, 1, 1]
    assert rows.keys is not None
    assert rows.keys.tolist() == ["w1", "w1", "w2"]
    crlf = load(tmp_path, CSV, t__csv=("\ufeff" + TABLE.replace("\n", "\r\n")).encode())
    packed_ = load(tmp_path, CSV.replace("t.csv", "t.csv.gz"), t__csv__gz=TABLE.encode())
    assert crlf.digest == packed_.digest == rows.digest


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("60", "sixty"), "t.csv: line 2, column 'age': 'sixty' is not a finite number"),
        (("60", "nan"), "line 2, column 'age': 'nan' is not a finite number"),
        (("60", "1e999"), "'1e999' is not a finite number"),
        (("60", "6_0"), "'6_0' is not a finite number"),
        (("60", "?"), "line 2, column 'age': a value is missing, and fill is not set"),
        (("w1,60", "w1,60,7"), "line 2 has 6 cells, line 1 has 5"),
        (("w2,55,,c,yes\n", "w2,55\n"), "line 4 has 2 cells, line 1 has 5"),
        (("c,yes", "c,maybe"), "line 4, column 'out': 'maybe' is none of the classes no, yes"),
        (("age", "Age"), "no column 'age' (recipe); it has who, Age, dose, race, out"),
        (("who,", "age,"), "line 1 names the column 'age' twice"),
        (("w2", '"w2'), "line 4: unexpected end of data"),
        (("w2", "w\0"), "line 4 has a zero byte"),
        ((TABLE, ""), "the file is empty"),
        ((TABLE, "who,age,dose,race,out\n"), "no rows: an empty data set teaches nothing"),
    ],
)
def test_csv_faults_have_line_and_column(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        load(tmp_path, CSV, t__csv=TABLE.replace(*change, 1).encode())
    assert sentence in caught.value.message
    assert "t.csv" in caught.value.message


def test_csv_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LimitError, match="line 2 is longer than 1048576 bytes"):
        load(
            tmp_path,
            CSV.replace("t.csv", "t.csv.gz"),
            t__csv__gz=TABLE.splitlines(keepends=True)[0].encode() + b"1" * (64 << 20),
        )
    with pytest.raises(MalformedError, match="line 2, byte 2: not UTF-8"):
        load(tmp_path, CSV, t__csv=TABLE.encode().replace(b"w1", b"w\xff", 1))
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    with pytest.raises(LimitError, match="more than 2 rows"):
        load(tmp_path, CSV, t__csv=TABLE.encode())
    monkeypatch.setattr(limits, "MAX_ROWS", 2)
    with pytest.raises(LimitError, match="5 rows of 24 bytes; at most 2 rows"):
        load(tmp_path, IDX, x=idx(IMAGES), y=idx(LABELS.astype(np.uint8)))


HEAD = "who,age,dose,race,out\n"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            "w1,60,1,a,no\nw2,60,1," + ('"' + "b\n" * 30_000 + '",') * 20,
            "line 3: the row that begins here has more than 1048576",
        ),
        ('w1,60,1,"' + "a\n" * (1 << 20), "line 2: a cell has more than 131072"),
        ("w1,60,1," + "b" * 131_073 + ",no\n", "line 2: a cell has more than 131072"),
        ("-w1,60,1," + "b" * 131_073 + ",no\n", "line 2: the cell in column 'race' has more than 131072"),
    ],
)
def test_cells_and_rows_over_many_lines_are_bounded(tmp_path: Path, rows: str, sentence: str) -> None:
    text = CSV.replace("[recipe]", "quoted = false\n[recipe]") if rows.startswith("-") else CSV
    with pytest.raises(LimitError) as caught:
        load(tmp_path, text, t__csv=(HEAD + rows).encode())
    assert f"t.csv: {sentence} characters: is a quote missing?" in caught.value.message


def test_a_rows_bound_is_counted_anew_with_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 40)
    assert len(load(tmp_path, CSV, t__csv=(HEAD + '"w\n1",60,1,b,no\n' * 30).encode())) == 30


def test_regression_targets_fall_between_cuts(tmp_path: Path) -> None:
    text = CSV.replace('class_names = ["no", "yes"]', "cuts = [10.0, 20.0]")
    table = TABLE.replace("no\n", "10\n").replace("b,yes", "b,10.5").replace("c,yes", "c,1e3")
    assert load(tmp_path, text, t__csv=table.encode()).y.tolist() == [0, 1, 2]


def test_texts_are_counted_by_the_fixed_vocabulary(tmp_path: Path) -> None:
    lines = 'ham\thello hello \x85 you\nspam\tFREE prize, "free\nham\t\n'
    rows = load(tmp_path, TEXT, t__tsv=lines.encode())
    length = np.sqrt(4.0**2 + 4.0**2)
    np.testing.assert_allclose(rows.x, [[0, 1, 0], [4 / length, 0, 4 / length], [0, 0, 0]], atol=1e-6)
    assert rows.y.tolist() == [0, 1, 0]
    with pytest.raises(MalformedError, match=r"t\.tsv: line 1 has 1 cells|line 2 has 1 cells"):
        load(tmp_path, TEXT, t__tsv=b"ham\ta\nno tab here\n")


def test_hashing_is_the_same_whatever_else_is_in_the_file(tmp_path: Path) -> None:
    rule = TEXT[: TEXT.index("text = {")] + 'text = { method = "hashing", size = 16, ngrams = [1, 2] }\n'
    whole = load(tmp_path, rule, t__tsv=b"ham\tgood morning sun\nspam\twin money now\n")
    alone = load(tmp_path, rule, t__tsv=b"spam\twin money now\n")
    np.testing.assert_array_equal(whole.x[1:], alone.x)


def test_plain_texts_one_class_a_file(tmp_path: Path) -> None:
    text = TEXT.replace('["t.tsv"]', '["ham.txt", "spam.txt"]\nclass_files = true').replace(
        "header = false\nquoted = false\n", ""
    )
    text = text.replace('target = "0"\ntext = "1"\n', "")
    rows = load(tmp_path, text, ham__txt=b"hello you\n\nhello\n", spam__txt=b"free prize")
    assert rows.y.tolist() == [0, 0, 1]


def test_what_belongs_to_a_path_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = load(folder, CSV, t__csv=TABLE.encode())
    assert load_rows(folder).digest == rows.digest
    assert load_rows(folder / "t.csv", folder / "data.toml").digest == rows.digest
    (folder / "data.toml").rename(folder / "t.toml")
    assert load_rows(folder / "t.csv").digest == rows.digest
    other = packed(tmp_path / "other.csv", TABLE.encode())
    with pytest.raises(NotFoundError, match=r"other\.csv: no descriptor beside it: `pofl data describe` writes one"):
        load_rows(other)
    with pytest.raises(NotFoundError, match="no such file"):
        load_rows(tmp_path / "nothing.csv")


def test_wide_rows_come_in_few_at_a_time() -> None:
    wide = Recipe(raw="text", classes=2, text=TextRule("hashing", size=1 << 16))
    assert tables.rows_at_a_time(wide) == 64
    assert tables.rows_at_a_time(Recipe(raw="pixels", classes=2, shape=(256, 256), resize=(2, 2))) == 64
    assert tables.rows_at_a_time(Recipe(raw="numbers", classes=2, shape=(3,))) == tables.CHUNK


def test_rows_are_the_same_whatever_the_size_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load(tmp_path, CSV, t__csv=TABLE.encode())
    monkeypatch.setattr(tables, "CHUNK", 1)
    assert rows_of(read_descriptor(tmp_path / "data.toml")).digest == rows.digest
