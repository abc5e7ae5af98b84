"""`profiling/accuracy.py`: its figures, and that the docs' table is the recorded run's."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "profiling"))

import accuracy

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def rows():
    return list(accuracy.measured(accuracy.SHAPES[:1]))


def test_two_runs_give_the_same_figures_and_every_pass_has_some(rows):
    assert rows == list(accuracy.measured(accuracy.SHAPES[:1]))
    assert {(row["pass"], row["inputs"]) for row in rows if row["algorithm"] == "gemm, NumPy"} == {
        (name, inputs) for name in accuracy.PASSES for inputs in accuracy.INPUTS
    }


def test_errors_are_those_of_float32_and_winograds_stay_under_its_limit(rows):
    assert "winograd, NumPy" in {row["algorithm"] for row in rows}
    for row in rows:
        assert 1e-9 < row["norm"] < (1e-4 if row["algorithm"].startswith("winograd") else 1e-5), row


def test_the_docs_table_is_the_recorded_runs():
    recorded = json.loads((ROOT / "profiling/results/accuracy-cpu.json").read_text())["rows"]
    text = (ROOT / "docs/cpu.md").read_text()
    assert accuracy.with_table(text, accuracy.summary(recorded)) == text


def test_a_document_without_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the lines"):
        accuracy.with_table("no marks", [])
