"""What `label --dry-run` says a run will cost: by hand for a corpus that is known, and what it refuses."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CHATML, save_model, tokenizer

from jobs.label.sizing import Rate, Sample, costs, measured_rate
from pipeline.errors import ConfigError

Here = Callable[..., subprocess.CompletedProcess[str]]
STORES = Path(__file__).parents[1] / "data"

SAMPLE = Sample(
    rows=10_000, files=8, shards=80, sampled_rows=100, responses=200, prompt_tokens=1000, response_tokens=800
)
"""1,800 tokens in 100 rows of 10,000: 180,000 tokens."""


def test_hours_and_price_by_hand() -> None:
    """180,000 tokens at 10 a second are 5 hours; at 3 an hour 15, and 1,500 for a hundred times as many rows."""
    table = dict(costs(SAMPLE, Rate(10, "as given"), 4, 3.0))
    assert table["Rate"] == "10 tokens/s an actor, as given"
    assert table["Computing"] == "5.0 hours of one actor, 1.2 hours of 4 (scorer.max_actors)"
    assert table["Price"] == "15.00 at 3 an actor's hour; a million rows 1,500.00"
    assert "waiting for the last shards" in table["Not counted"]


def test_without_a_price_or_a_rate_it_says_none() -> None:
    assert "Price" not in dict(costs(SAMPLE, Rate(10, "as given"), 1, None))
    [(name, text)] = costs(SAMPLE, None, 1, None)
    assert name == "Hours and price" and "--measured STORE" in text


@pytest.mark.parametrize(("rate", "text"), [(100, "30.0 minutes"), (6000, "30.0 seconds"), (18, "2.8 hours")])
def test_a_time_is_in_the_unit_that_reads_well(rate: float, text: str) -> None:
    assert dict(costs(SAMPLE, Rate(rate, ""), 1, None))["Computing"].startswith(text)


def test_the_spread_over_files_is_shown() -> None:
    sample = Sample(20, 3, 3, 10, 20, 30, 70, tokens_a_row=[4.0, 10.0, 16.0], errors=Counter(too_long=2))
    table = dict(sample.table())
    assert table["Tokens a row"] == "10; from 4 to 16 in 3 files"
    assert table["Tokens to forward"] == "200 (a shared prompt once)" and table["Error too_long"] == "4"


def test_the_rate_of_a_finished_run(tmp_path: Path) -> None:
    """562 tokens were forwarded in 3.11 s there."""
    rate = measured_rate(str(STORES / "store-format-2"))
    assert rate.tokens_per_second == pytest.approx(562 / 3.11) and "measured in" in rate.source
    shutil.copytree(STORES / "store-format-2", tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    (tmp_path / "store" / "manifest.json").write_text(json.dumps({**manifest, "timing": None}))
    for place in (tmp_path / "store", tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"no finished run left its rate there.*--tokens-per-second"):
            measured_rate(str(place))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--price", "2"], "--price: is for the estimate of --dry-run"),
        (["--tokens-per-second", "9"], "--tokens-per-second: is for the estimate of --dry-run"),
        (["--dry-run", "--price", "2"], "--price: needs a rate"),
        (["--dry-run", "--tokens-per-second", "9", "--measured", "out/x"], "give one"),
        (["--dry-run", "--price", "-2"], "-2 is no number above 0"),
        (["--dry-run", "--tokens-per-second", "nan"], "nan is no number above 0"),
        (["--dry-run", "--measured", "s3://user:password@bucket/x"], "holds credentials"),
    ],
)
def test_flags_that_say_nothing_are_refused(flags: list[str], sentence: str, here: Here, tmp_path: Path) -> None:
    ran = here("label", "--model", tmp_path, "--input", tmp_path, "--output", tmp_path / "out", *flags)
    assert ran.returncode in (1, 2) and sentence in ran.stderr and "password" not in ran.stderr.replace(sentence, "")


@pytest.mark.slow
def test_a_dry_run_counts_the_tokens_that_would_be_forwarded(here: Here, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CHATML)
    (tmp_path / "in").mkdir()
    rows = [{"prompt": "ab" * n, "chosen": "good", "rejected": "bad one"} for n in (1, 2, 3, 9)]
    for name, those in (("a", rows[:3]), ("b", rows[3:])):
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in those))
    ran = here(
        "label", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out", "--dry-run",
        "--tokens-per-second", "1", "--price", "36", "--set", "scorer.max_actors=2",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    tok = tokenizer(CHATML)

    def tokens(row: dict[str, str]) -> int:
        user = [{"role": "user", "content": row["prompt"]}]
        prompt = len(tok.apply_chat_template(user, add_generation_prompt=True, return_dict=False))
        ends = [len(tok.apply_chat_template([*user, {"role": "assistant", "content": row[side]}], return_dict=False))
                for side in ("chosen", "rejected")]  # fmt: skip
        newline = len(tok("\n", add_special_tokens=False)["input_ids"])  # after the turn, which is not scored
        return prompt + sum(end - prompt - newline for end in ends)

    total = sum(map(tokens, rows))
    shown = {
        name: " ".join(text.split()) for name, text in re.findall(r"^([A-Z][A-Za-z ]+?)  +(.+)$", ran.stdout, re.M)
    }
    assert shown["Rows"].startswith("4 in 2 files") and shown["Tokens to forward"].startswith(f"{total:,} ")
    assert shown["Price"].startswith(
        f"{total / 100:,.2f} at 36 an actor's hour; a million rows {total / 400 * 1e6:,.2f}"
    )
    assert not (tmp_path / "out").exists()
