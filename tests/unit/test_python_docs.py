"""docs/python.md and examples/score_without_ray.py run, and give what the document says."""

import doctest
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from label_stores import label_store

FENCE = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples_give_what_the_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the figures are of a CPU
    pairs = (ROOT / "examples/addition/pairs.jsonl").read_text().splitlines()[:4]
    label_store(tmp_path / "out/first", Path("examples/addition/model"), list(map(json.loads, pairs)))
    text = "".join(FENCE.findall((ROOT / "docs/python.md").read_text()))
    test = doctest.DocTestParser().get_doctest(text, {}, "python.md", "docs/python.md", 0)
    assert len(test.examples) > 20
    report: list[str] = []
    failed, _ = doctest.DocTestRunner().run(test, out=report.append)
    assert not failed, "".join(report)


def test_the_example_prints_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["score_without_ray.py"])
    runpy.run_path("examples/score_without_ray.py", run_name="__main__")
    _, right, wrong = capsys.readouterr().out.splitlines()
    assert (right.split()[0], wrong.split()[0]) == ("9.647", "5.078")
