"""``pofl data describe`` and ``inspect``: what is left out, what looks wrong, and what a mistake says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import MalformedError, NotFoundError
from services.cli.data import app
from services.data.descriptor import read_descriptor
from services.data.likeness import check_alike
from services.data.loading import is_described, load_rows
from services.data.rows import Rows
from services.data.stored import save_rows
from services.data.survey import MOST_DISTINCT, ColumnSummary

ROWS = 400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def visits(**cells: str) -> None:
    """A table of 400 visits; ``age_7="old"`` puts a text into the row on line 9."""
    rng = np.random.default_rng(1)
    columns = {
        "visit": [str(1000 + 7 * i) for i in range(ROWS)],
        "patient": [str(i % 90) for i in range(ROWS)],
        "age": [str(value) for value in rng.integers(20, 90, ROWS)],
        "jitter": [f"{value:.5f}" for value in rng.random(ROWS)],
        "code": [f"{'V' if i % 4 == 0 else ''}{i % 60}" for i in range(ROWS)],
        "sex": ["mf"[i % 2] for i in range(ROWS)],
        "drug": ["No"] * ROWS,
        "out": [("no", "yes")[i % 3 == 0] for i in range(ROWS)],
    }
    for place, text in cells.items():
        name, _, row = place.rpartition("_")
        columns[name][int(row)] = text
    lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    Path("visits.csv").write_text("\n".join(lines) + "\n")


def pofl_data(*arguments: str) -> int:
    try:
        app(list(arguments), prog_name="data", standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `describe visits.csv` prints, without the line ends of a narrow terminal."""
    Path("v.toml").unlink(missing_ok=True)
    code = pofl_data("describe", "visits.csv", "--target", "out", "--out", "v.toml", *arguments)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return " ".join(shown.out.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert pofl_data(*arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def names() -> list[str]:
    return [column.name for column in read_descriptor(Path("v.toml")).recipe.columns]


# What is left out


def test_what_is_left_out_is_said_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visits()
    shown = described(capsys, "--key", "patient", "--without", "visit")
    assert "left out: code (60 values, more than --categories 12), drug (one value)" in shown
    assert names() == ["age", "jitter", "sex"]
    visits(**{f"age_{i}": "old" for i in range(3, 40)})
    assert "age (line 5: 'old' is not a number, 363 other cells are)" in described(capsys, "--without", "visit")


def test_one_bad_cell_does_not_drop_a_column(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for missing in ("NaN", "nan", "NA", "?", ""):
        visits(jitter_8=missing)
        assert "jitter" not in described(capsys)
        assert "jitter" in names()
    assert load_rows(Path("v.toml")).x.shape[0] == ROWS
    visits(age_8="old", jitter_2="1,5".replace(",", "_"))
    told = refused(capsys, "describe", "visits.csv", "--target", "out", "--out", "w.toml")
    assert "visits.csv: line 10, column 'age': 'old' is not a number, 399 other cells are" in told
    assert "jitter (line 4: '1_5' is not a number, 399 other cells are)" in told
    assert "name them with --missing; or --without age" in told
    assert not Path("w.toml").exists()
    described(capsys, "--missing", "old,1_5")
    assert {"age", "jitter"} <= set(names())
    described(capsys, "--without", "age,jitter")
    assert not {"age", "jitter"} & set(names())


def test_a_row_without_a_target_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visits(out_8="NA", out_9="")
    told = refused(capsys, "describe", "visits.csv", "--target", "out", "--out", "w.toml")
    assert "visits.csv: line 10, column 'out': no value, in 2 rows" in told
    visits(age_8="?")
    told = refused(capsys, "describe", "visits.csv", "--target", "age", "--real", "--out", "w.toml")
    assert "column 'age': no value, in 1 rows" in told
    visits(age_8="old")
    told = refused(capsys, "describe", "visits.csv", "--target", "age", "--cuts", "50", "--out", "w.toml")
    assert "--cuts: column 'age': line 10: 'old' is not a number" in told


def table(name: str, cells: list[str]) -> None:
    """Two columns: these cells, and the target out, which is a or b."""
    rows = (f"{cell},{'ab'[index % 2]}" for index, cell in enumerate(cells))
    Path("visits.csv").write_text("\n".join((f"{name},out", *rows)) + "\n")


def test_large_numbers_that_differ_little_keep_their_deviation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for offset in (1_700_000_000_000, 1e9, -1e15, 0):
        table("time", [repr(offset + i) for i in range(1000)])
        described(capsys)
        (column,) = read_descriptor(Path("v.toml")).recipe.columns
        assert column.scale == pytest.approx(288.675, rel=1e-5)
        assert abs(column.center - (offset + 499.5)) < 3
        x = load_rows(Path("v.toml")).x
        assert abs(float(x.mean())) < 0.02
        assert float(x.std()) == pytest.approx(1, abs=0.01)
    # One that lies far from all others, and comes first.
    table("time", ["1e12", *(str(i) for i in range(99))])
    described(capsys)
    assert read_descriptor(Path("v.toml")).recipe.columns[0].scale == pytest.approx(9.94987e10)


@pytest.mark.parametrize("cell", ["1e200", "-1e308", "1.1e30"])
def test_a_number_beyond_measure_is_named(folder: Path, capsys: pytest.CaptureFixture[str], cell: str) -> None:
    visits(jitter_8=cell)
    told = refused(capsys, "describe", "visits.csv", "--target", "out", "--out", "w.toml")
    assert f"visits.csv: line 10, column 'jitter': '{cell}' is beyond 1e+30" in told
    assert "name it with --missing; or --without jitter" in told
    described(capsys, "--missing", cell)
    described(capsys, "--without", "jitter")
    for arguments in (("--real",), ("--cuts", "0.5")):
        told = refused(capsys, "describe", "visits.csv", "--target", "jitter", *arguments, "--out", "w.toml")
        assert f"column 'jitter': '{cell}' is beyond 1e+30" in told
        assert "take the row out" in told
    # Digests that look like numbers are texts among texts.
    table("digest", [f"{i}{'ae'[i % 2]}99" for i in range(40)])
    Path("visits.csv").write_text(Path("visits.csv").read_text().replace("digest,", "x,digest,").replace("\n", "\n1,", 40))
    assert "no column can be a feature" in refused(capsys, "describe", "visits.csv", "--target", "out", "--out", "w.toml")


@pytest.mark.parametrize("size", ["x16", "16x", "x", "16", "16x16x16", "-1x16", "1e3x2", "99999999x1", "\u00b2x\u00b2"])
def test_a_size_that_is_none_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    np.savez("images.npz", x=np.zeros((4, 8, 8), dtype=np.uint8), y=np.arange(4) % 2)
    told = refused(capsys, "describe", "images.npz", f"--resize={size}", "--out", "w.toml")
    assert f"--resize is {size!r}: it must be height x width, like 16x16" in told


def test_only_whole_numbers_are_kept_to_be_compared() -> None:
    whole, measured, gaps = (ColumnSummary(name) for name in ("whole", "measured", "gaps"))
    for index in range(MOST_DISTINCT + 9):
        whole.add(str(index), frozenset({""}), Path("t.csv"), index)
        measured.add(f"{index}.5", frozenset({""}), Path("t.csv"), index)
    assert measured.distinct is None
    assert len(whole.distinct or ()) == MOST_DISTINCT
    whole.add("7", frozenset({""}), Path("t.csv"), 0)
    assert not whole.is_identifier
    gaps.add("", frozenset({""}), Path("t.csv"), 0)
    assert gaps.distinct is None


# What looks like no feature


def test_an_identifier_and_the_target_in_other_words_are_suspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visits(**{f"code_{i}": "1" if i % 3 == 0 else "0" for i in range(ROWS)})
    shown = described(capsys)
    assert "warning: visit has as many values as rows, 400: an identifier? --without visit leaves it out" in shown
    assert "warning: code nearly equals the target out, their correlation is" in shown
    assert "jitter" not in shown, "measurements differ in every row too"
    assert "warning" not in described(capsys, "--without", "visit,code")


@pytest.mark.shared
def test_motor_updrs_is_suspected_of_being_total_updrs(
    folder: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (shared_data / "federated" / "parkinsons_telemonitoring.csv").read_text().splitlines()
    Path("p.csv").write_text("\n".join(table[:1] + table[1::10]) + "\n")
    arguments = ("describe", "p.csv", "--target", "total_UPDRS", "--key", "subject#", "--cuts", "22,33")
    assert pofl_data(*arguments, "--out", "p.toml") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: motor_UPDRS nearly equals the target total_UPDRS, their correlation is 0.9" in shown
    assert shown.count("warning") == 1


# Names of columns


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "Out"), "--target is 'Out': it must be one of the columns visit, patient, age, jitter, code, sex, drug"),
        (("--target", "Out"), "sex, drug, out; did you mean 'out'?"),
        (("--target", "out", "--key", "PATIENT"), "--key is 'PATIENT': it must be one of the columns visit, patient, age"),
        (("--target", "out", "--key", "patients"), "did you mean 'patient'?"),
        (("--target", "out", "--key", "out"), "--key and --target are the same column, out"),
        (("--target", "out", "--without", "Visit"), "--without names 'Visit', there is no such column in visit, patient"),
        (("--target", "out", "--without", "Visit"), "did you mean 'visit'?"),
        (("--no-header", "--target", "out"), "one of the columns (without a header: their numbers) 0, 1, 2, 3, 4, 5, 6, 7"),
        (("--target", "visit"), "visit has 400 different values: 2 to 256 are classes"),
    ],
)  # fmt: skip
def test_a_wrong_name_of_a_column_is_told_with_the_right_ones(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    visits()
    assert sentence in refused(capsys, "describe", "visits.csv", *arguments, "--out", "w.toml")


def test_a_cut_list_of_columns_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wide.csv").write_text(",".join(f"c{i}" for i in range(22)) + "\n" + ",".join("1" * 22) + "\n")
    told = refused(capsys, "describe", "wide.csv", "--target", "x", "--out", "w.toml")
    assert "c18, c19, ... and 2 more" in told
    Path("w.toml").write_text(
        'kind = "csv"\nfiles = ["wide.csv"]\ntarget = "C21"\n'
        '[recipe]\nraw = "table"\nclasses = 2\ncolumns = [{ name = "c0" }]\n'
    )
    with pytest.raises(MalformedError, match=r"c19, \.\.\. and 2 more; did you mean 'c21'\?"):
        load_rows(Path("w.toml"))


# Texts


def test_text_implies_its_kind_and_a_quote_says_the_way_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sms.tsv").write_text('ham\t"ok" he said\nspam\tfree prize\n' * 20)
    arguments = ("describe", "sms.tsv", "--no-header", "--target", "0", "--text", "1", "--out", "sms.toml")
    told = refused(capsys, *arguments)
    assert "sms.tsv: line 1: " in told
    assert "if quotes are plain characters here: --not-quoted, or quoted = false in the descriptor" in told
    assert pofl_data(*arguments, "--not-quoted") == 0
    made = read_descriptor(Path("sms.toml"))
    assert (made.kind, made.quoted, made.recipe.class_names) == ("text", False, ("ham", "spam"))
    for wrong, sentence in (("sms", "--text is 'sms': it must be one of the columns"), ("", "--text must be one of")):
        told = refused(
            capsys, "describe", "sms.tsv", "--kind", "text", "--no-header", "--not-quoted", "--target", "0", "--text", wrong,
            "--out", "w.toml",
        )  # fmt: skip
        assert sentence in told
    assert "--text is for --kind text, not for csv" in refused(
        capsys, "describe", "sms.tsv", "--kind", "csv", "--target", "0", "--text", "1", "--out", "w.toml"
    )


# A folder


def test_the_only_descriptor_of_a_folder_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visits()
    described(capsys)
    mine = folder / "mine"
    mine.mkdir()
    with pytest.raises(NotFoundError, match=r"mine: a folder without a descriptor \(\.toml\), it is empty"):
        load_rows(mine)
    (mine / "mine.csv").write_bytes((folder / "visits.csv").read_bytes())
    with pytest.raises(NotFoundError, match=r"it holds mine\.csv: `pofl data describe` writes one"):
        load_rows(mine)
    text = (folder / "v.toml").read_text().replace("visits.csv", "mine.csv")
    (mine / "mine.toml").write_text(text)
    assert is_described(mine)
    assert len(load_rows(mine)) == ROWS
    (mine / "other.toml").write_text(text)
    with pytest.raises(NotFoundError, match=r"a folder of 2 \.toml files, none of them data\.toml or descriptor\.toml"):
        load_rows(mine)
    (mine / "data.toml").write_text(text)
    assert len(load_rows(mine)) == ROWS


# Before joining


def test_a_class_of_one_row_and_classes_of_none_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("class.npz", x=np.ones((31, 2)), y=np.array([i % 3 for i in range(30)] + [9]))
    assert pofl_data("inspect", "class.npz") == 0
    assert "warning: class 9 has one row, classes 3 to 8 none" in capsys.readouterr().out
    assert pofl_data("inspect", "class.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == ["class 9 has one row, classes 3 to 8 none"]
    np.savez("class.npz", x=np.ones((30, 2)), y=np.array([i % 3 * 2 for i in range(30)]))
    assert pofl_data("inspect", "class.npz") == 0
    assert "warning: classes 1, 3 have no row" in capsys.readouterr().out
    np.savez("class.npz", x=np.ones((30, 2)), y=np.arange(30) % 3)
    assert pofl_data("inspect", "class.npz") == 0
    assert "warning" not in capsys.readouterr().out


def test_rows_are_compared_with_a_practice_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visits()
    described(capsys, "--without", "visit")
    rows = load_rows(folder / "v.toml")
    save_rows(folder / "practice.npz", rows.take(np.arange(50)))
    assert pofl_data("inspect", "v.toml", "--like", "practice.npz") == 0
    assert "these rows fit practice.npz\n" in capsys.readouterr().out
    described(capsys)
    told = refused(capsys, "inspect", "v.toml", "--like", "practice.npz")
    assert "v.toml and practice.npz are made by different recipes" in told
    assert "put the [recipe] that `pofl data recipe practice.npz` prints into your descriptor" in told
    for x, y, sentence in (
        (np.ones((9, 3)), np.arange(9) % 2, "rows of different width: 3 and 5 features"),
        (np.ones((9, 5)), np.arange(9) % 5, "row 2 of mine.npz has label 2, practice.npz has classes 0 to 1"),
    ):
        np.savez("mine.npz", x=x, y=y)
        assert sentence in refused(capsys, "inspect", "mine.npz", "--like", "practice.npz")
    np.savez("mine.npz", x=np.full((9, 5), 1000.0), y=np.arange(9) % 2)
    assert pofl_data("inspect", "mine.npz", "--like", "practice.npz") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: no recipe in mine.npz: whether the features are made alike cannot be told" in shown
    assert "another unit?" in shown
    assert "these rows fit practice.npz, as far as can be told" in shown
    real = Rows("r", "r", rows.x, rows.x[:, 0].astype(np.float64), 0)
    with pytest.raises(MalformedError, match="different labels: real targets and classes"):
        check_alike(real, load_rows(folder / "practice.npz"))
