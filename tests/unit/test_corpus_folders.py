"""Which files of a folder are read: layouts as `datasets` writes them and as the hub's clones have them, and refusals whose
advice, followed to the letter, is enough."""

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import CHATML, save_model

from jobs.__main__ import main
from jobs.label.plan import find_inputs
from pipeline.config import InputConfig, load_config
from pipeline.corpus import Choice, detect, find_files, plan_file
from pipeline.corpus.files.folders import split_word
from pipeline.errors import InputError
from pipeline.evaluation.benchmarks import find_benchmark

ROW = {"prompt": "q", "chosen": "good", "rejected": "bad"}
CARD = "---\nlicense: mit\nconfigs:\n{}---\n# A card\n"
DEFAULT = CARD.format(
    "- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n"
)
TWO_CONFIGS = CARD.format(
    "- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  - split: test\n    path: main/test-*\n"
    "- config_name: socratic\n  data_files:\n  - split: test\n    path: socratic/test-*\n"
)
ONE_SPLIT = CARD.format("- config_name: default\n  data_files: pairs.jsonl\n")
DATA_DIR = CARD.format("- config_name: en\n  data_dir: en\n- config_name: de\n  data_dir: de\n")
STATE = {"_data_files": [{"filename": "data-00000-of-00002.arrow"}, {"filename": "data-00001-of-00002.arrow"}]}
SAVED = ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "cache-1f2e.arrow", "dataset_info.json")


def write(path: Path, row: dict[str, object] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = row or ROW
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist([row])
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    elif path.suffix in (".csv", ".tsv"):
        sign = "," if path.suffix == ".csv" else "\t"
        path.write_text(sign.join(row) + "\n" + sign.join(map(str, row.values())) + "\n")
    else:
        path.write_text(json.dumps(row) + "\n")


def laid_out(folder: Path, *names: str, card: str | None = None, states: tuple[str, ...] = ()) -> Path:
    for name in names:
        write(folder / name)
    if card is not None:
        (folder / "README.md").write_text(card)
    for top in states:
        (folder / top / "state.json").write_text(json.dumps(STATE))
    return folder


def saved(folder: Path, *tops: str) -> Path:
    return laid_out(folder, *(f"{top}{name}" for top in tops for name in SAVED), states=tops)


HH = [f"{top}/{name}.jsonl" for top in ("harmless-base", "helpful-base") for name in ("train", "test")]
REWARD_BENCH = ("data/raw-00000-of-00001.parquet", "data/filtered-00000-of-00001.parquet")

# What is there, what is chosen, what is read.
LAYOUTS = {
    "shards stay a corpus": (["part-0001.jsonl", "part-0002.jsonl"], None, Choice(), ["part-0001.jsonl", "part-0002.jsonl"]),
    "files of any name": (["a.jsonl", "b.jsonl", "sub/c.csv"], None, Choice(), ["a.jsonl", "b.jsonl", "sub/c.csv"]),
    "shards by year": (
        ["2023/part-00000-of-00001.jsonl", "2024/part-00000-of-00001.jsonl"], None, Choice(),
        ["2023/part-00000-of-00001.jsonl", "2024/part-00000-of-00001.jsonl"],
    ),
    "one split beside another file": (["extra.jsonl", "train.jsonl"], None, Choice(), ["extra.jsonl", "train.jsonl"]),
    "one split of that, chosen": (["extra.jsonl", "train.jsonl"], None, Choice(split="train"), ["train.jsonl"]),
    "corpora, no splits": (["a/x.test.json", "b/train.jsonl"], None, Choice(), ["a/x.test.json", "b/train.jsonl"]),
    "train and test, one chosen": (["test.jsonl", "train.jsonl"], None, Choice(split="test"), ["test.jsonl"]),
    "another word for it": (["train.csv", "valid.csv"], None, Choice(split="dev"), ["valid.csv"]),
    "a pattern": (["train_a.tsv", "train_b.tsv", "test.tsv"], None, Choice(split="tr*"), ["train_a.tsv", "train_b.tsv"]),
    "all of them": (["test.csv", "train.csv", "x.csv"], None, Choice(split="*"), ["test.csv", "train.csv", "x.csv"]),
    "folders of splits": (["test/1.json", "train/1.json"], None, Choice(split="train"), ["train/1.json"]),
    "a clone of one split": (["pairs.jsonl", "notes.jsonl"], ONE_SPLIT, Choice(), ["pairs.jsonl"]),
    "a clone of two splits": (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        DEFAULT, Choice(split="train"), ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    ),
    "a clone of two configurations": (
        ["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet", "socratic/test-00000-of-00001.parquet"],
        TWO_CONFIGS, Choice("main", "test"), ["main/test-00000-of-00001.parquet"],
    ),
    "a configuration of one split": (
        ["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet", "socratic/test-00000-of-00001.parquet"],
        TWO_CONFIGS, Choice("socratic"), ["socratic/test-00000-of-00001.parquet"],
    ),
    "a data_dir": (["de/test.csv", "de/train.csv", "en/x.csv"], DATA_DIR, Choice("de", "train"), ["de/train.csv"]),
    "a card without configurations": (HH, "---\nlicense: mit\n---\n", Choice(split="test"), sorted(HH)[::2]),
    "a card that is not YAML": (["a.jsonl"], "---\na: [\n---\n", Choice(), ["a.jsonl"]),
    "a card that names nothing here": (["a.jsonl"], DEFAULT, Choice(), ["a.jsonl"]),
    "configurations by folder": (
        ["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet", "dataset_infos.json"], None, Choice("b"),
        ["b/train-00000-of-00001.parquet"],
    ),
    "splits of any name": (
        ["data/train_prefs-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"], None, Choice(split="train_sft"),
        ["data/train_sft-00000-of-00001.parquet"],
    ),
    "metadata beside data": (
        ["a.jsonl", "dataset_infos.json", "config.json", "README", "LICENSE.md"], "# Mine", Choice(), ["a.jsonl"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_read_of_a_folder(tmp_path, name):
    there, card, choice, expected = LAYOUTS[name]
    folder = laid_out(tmp_path / "corpus", *there, card=card)
    files = find_files([str(folder)], choice)
    assert [file.name for file in files] == expected
    every = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {each.name for each in files.skipped} == every - set(expected)  # each is read or named
    assert all(each.reason for each in files.skipped)


# What is there, and what the refusal says of it.
SEVERAL = {
    "train and test": (["train.jsonl", "test.jsonl"], None, "train (train.jsonl), test (test.jsonl)"),
    "and a file without": (["train.jsonl", "test.jsonl", "x.jsonl"], None, "without a name for it, x.jsonl"),
    "folders": (["train/a.csv", "test/a.csv", "test/b.csv"], None, "train (train/a.csv), test (2 files)"),
    "a clone": (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], DEFAULT, "several splits"),
    "configurations": (
        ["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet", "socratic/test-00000-of-00001.parquet"],
        TWO_CONFIGS, "several configurations, and a corpus is one: main (2 files), socratic",
    ),
    "configurations by folder": (
        ["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet", "dataset_infos.json"], None, "a (a/train",
    ),
    "the raw and the filtered": (REWARD_BENCH, None, "filtered (data/filtered-00000-of-00001.parquet), raw"),
    "folders of one name": (HH, None, "train (2 files), test (2 files)"),
    "a name to quote": (
        ["a $x/train-00000-of-00001.csv", "b/train-00000-of-00001.csv", ".gitattributes"], None, "a $x (a $x/train",
    ),
}  # fmt: skip


def obeyed(said: str) -> tuple[list[str], list[str]]:
    """The settings, and the paths, that a message tells a person to give, read as a shell would; not those for all at once."""
    said = said.split("; --set")[0]
    settings = [word.rstrip(".,;") for word in re.findall(r"--set ((?:[^\s']|'[^']*')+)", said)]
    paths = re.findall(r"(?:give the (?:path|glob)(?: of one, such as)?) ('[^']*'|[^\s;)]+)", said)
    assert settings or paths, said
    return shlex.split(" ".join(settings)), shlex.split(" ".join(paths))


@pytest.mark.parametrize("name", SEVERAL)
def test_several_splits_are_refused_and_the_advice_is_enough(tmp_path, name):
    there, card, said = SEVERAL[name]
    folder = laid_out(tmp_path / "the corpus", *there, card=card)
    with pytest.raises(InputError) as raised:
        find_files([str(folder)])
    assert said in str(raised.value) and str(folder) in str(raised.value)

    settings, paths = obeyed(str(raised.value))
    config = load_config(None, [], settings).input
    files = find_files([str(folder)], Choice(config.config, config.split))
    assert 0 < len(files) < len(there) + (card is not None)
    for path in paths:
        assert [file.uri for file in find_files([path])] == [file.uri for file in files]

    everything = re.search(r"--set '(input\.\w+=\*)' takes all", str(raised.value))
    config = load_config(None, [], [everything[1]]).input
    try:
        assert len(find_files([str(folder)], Choice(config.config, config.split))) >= len(files)
    except InputError as error:  # all configurations, and still a split to choose
        assert "several splits" in str(error)


def test_a_choice_that_fits_nothing_is_refused(tmp_path):
    folder = laid_out(tmp_path, "train.jsonl", "test.jsonl")
    with pytest.raises(
        InputError, match=r"input\.split = 'filtered' is no split .* train \(train\.jsonl\), test"
    ) as raised:
        find_files([str(folder)], Choice(split="filtered"))
    settings, _ = obeyed(str(raised.value))
    assert settings == ["input.split=train"]
    with pytest.raises(
        InputError, match=r"input\.split = 'train' chooses among .* there are none in .*train\.jsonl; leave it out"
    ):
        find_files([str(folder / "train.jsonl")], Choice(split="train"))
    with pytest.raises(InputError, match=r"input\.config = 'a' chooses among"):
        find_files([str(folder / "train.jsonl")], Choice("a"))
    with pytest.raises(InputError, match=r"input\.config = 'a' chooses among"):
        find_files([str(folder)], Choice("a", "train"))


def test_the_held_out_prompts_choose_by_path(tmp_path):
    with pytest.raises(InputError, match=r"Choose one by its path, such as .*/train\.jsonl") as raised:
        find_files([str(laid_out(tmp_path, "train.jsonl", "test.jsonl"))], section=None)
    assert "--set" not in str(raised.value)


def test_words_that_say_a_split():
    said = {"train.jsonl": "train", "my_test-2.csv": "test", "x.dev.json": "validation", "alpaca_eval.json": "eval"}
    said |= {"contest.jsonl": None, "trained.json": None, "latest.json": None, "Validation1.json": "validation"}
    assert {name: split_word(name) for name in said} == said


def test_a_saved_dataset_is_what_its_state_names(tmp_path):
    folder = saved(tmp_path / "saved", "")
    files = find_files([str(folder)])
    assert [file.name for file in files] == list(SAVED[:2])
    assert {each.name: each.reason for each in files.skipped} == {
        "cache-1f2e.arrow": "its state.json does not name it", "dataset_info.json": "metadata", "state.json": "metadata",
    }  # fmt: skip
    assert [file.name for file in find_files([f"{folder}/*.arrow"])] == list(SAVED[:2])  # of a glob neither
    assert [file.name for file in find_files([f"{folder}/cache-1f2e.arrow"])] == [
        "cache-1f2e.arrow"
    ]  # asked for by name


def test_a_saved_dictionary_is_one_split(tmp_path):
    folder = saved(tmp_path / "saved", "train_prefs/", "good/")
    (folder / "dataset_dict.json").write_text('{"splits": ["train_prefs", "good"]}')
    with pytest.raises(InputError, match=r"several splits.*good \(2 files\), train_prefs \(2 files\)") as raised:
        find_files([str(folder)])
    settings, _ = obeyed(str(raised.value))
    assert settings == ["input.split=good"] and f"give the path {folder}/good)" in str(raised.value)
    assert [file.name for file in find_files([str(folder)], Choice(split="good"))] == [f"good/{n}" for n in SAVED[:2]]
    assert [file.name for file in find_files([f"{folder}/good"])] == list(SAVED[:2])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "does not name them"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow, which is not there"),
        ({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": [{}]}, "flatten_indices"),
    ],
)  # fmt: skip
def test_a_saved_dataset_that_is_not_whole_is_refused(tmp_path, state, said):
    laid_out(tmp_path, "data-00000-of-00001.arrow")
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=said):
        find_files([str(tmp_path)])


def test_what_is_skipped_is_named_with_its_remedy(tmp_path):
    folder = laid_out(
        tmp_path / "c", "a.jsonl", "b.jsonl.bz2", "c.tar.gz", "d.xlsx", "e.png", ".git/config", ".git/HEAD", "_x.json"
    )
    for number in range(7):
        write(folder / f"note{number}.txt")
    files = find_files([str(folder)])
    assert [file.name for file in files] == ["a.jsonl"]
    notes = dict(re.match(r"not read \((.*)\): (.*)", note).groups() for note in files.notes())
    assert notes.pop("names that begin with . or _").split(", ") in (["_x.json", ".git/"], [".git/", "_x.json"])
    assert re.search(r"note\d\.txt.* and 3 more", notes.pop("its suffix is none that is read"))
    assert notes == {
        ".bz2 is not unpacked here; unpack it with `bunzip2 -k`": "b.jsonl.bz2",
        ".tar is not unpacked here; unpack it with `tar -xf`": "c.tar.gz",
        ".xlsx is not read; export it as CSV": "d.xlsx",
    }
    (folder / "a.jsonl").unlink()
    with pytest.raises(InputError, match=r"no file to read in this folder .*b\.jsonl\.bz2.*e\.png"):
        find_files([str(folder)])


def test_a_link_to_nothing_is_named(tmp_path):
    laid_out(tmp_path, "a.jsonl")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert find_files([str(tmp_path)]).notes() == ["not read (links to nothing): sub/b.jsonl"]


def test_advice_for_files_without_a_suffix_is_enough(tmp_path):
    laid_out(tmp_path / "out", "part-0", "part-1")
    with pytest.raises(InputError, match="no file to read") as raised:
        find_files([str(tmp_path / "out")])
    settings, [glob] = obeyed(str(raised.value))
    format = load_config(None, [], settings).input.format
    assert [plan_file(file, format).rows for file in find_files([glob])] == [1, 1]


def test_a_run_names_what_it_does_not_read(tmp_path, capsys):
    model = save_model(tmp_path / "model", CHATML)
    folder = laid_out(
        tmp_path / "corpus", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", card=DEFAULT
    )
    words = ["label", "--model", str(model), "--input", str(folder), "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 2
    assert "several splits" in capsys.readouterr().err
    assert main([*words, "--set", "input.split=test"]) == 0
    shown = capsys.readouterr()
    assert (
        "not read (split train): data/train-00000-of-00001.parquet" in shown.err
        and "not read (metadata): README.md" in shown.err
    )
    assert "input data/test-00000-of-00001.parquet: 1 rows of prompt + chosen + rejected" in shown.out
    assert not (tmp_path / "out").exists()


# Benchmarks

RM_BENCH = ["chat", "code", "math", "safety-refuse", "safety-response"]
CLONES = {
    "reward-bench": (REWARD_BENCH, None, ["data/filtered-00000-of-00001.parquet"]),
    "reward-bench data": (
        ["data/train-00000-of-00001.parquet", "data/filtered-00000-of-00001.parquet"], None,
        ["data/filtered-00000-of-00001.parquet"],
    ),
    "reward-bench card": (
        [*REWARD_BENCH, "raw/sources.jsonl"],
        CARD.format("- config_name: default\n  data_files:\n  - split: raw\n    path: data/raw-*\n"
                    "  - split: filtered\n    path: data/filtered-*\n"),
        ["data/filtered-00000-of-00001.parquet"],
    ),
    "reward-bench exported": (["filtered.parquet", "raw.parquet"], None, ["filtered.parquet"]),
    "reward-bench-2": (["data/test-00000-of-00001.parquet"], None, ["data/test-00000-of-00001.parquet"]),
    "rm-bench": ([f"{part}_filtered.json" for part in RM_BENCH] + ["total_dataset.json"], None, ["total_dataset.json"]),
    "rm-bench root": (
        [f"data/{part}_filtered.json" for part in RM_BENCH] + ["data/total_dataset.json"], "# RM-Bench",
        ["data/total_dataset.json"],
    ),
    "rm-bench parts": ([f"{part}_filtered.json" for part in RM_BENCH], None, [f"{part}_filtered.json" for part in RM_BENCH]),
    "dsp": (
        [f"{name}.test.json" for name in ("domain_specific_preference", "harmless", "helpful", "webgpt")], None,
        ["domain_specific_preference.test.json"],
    ),
    "gsm8k": (
        ["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet", "socratic/test-00000-of-00001.parquet"],
        TWO_CONFIGS, ["main/test-00000-of-00001.parquet"],
    ),
    "math": (
        [f"{top}/{split}-00000-of-00001.parquet" for top in ("algebra", "geometry") for split in ("train", "test")], "# MATH",
        ["algebra/test-00000-of-00001.parquet", "geometry/test-00000-of-00001.parquet"],
    ),
    "math-500": (["test.jsonl"], "# MATH-500", ["test.jsonl"]),
}  # fmt: skip


def of_benchmark(name: str, path: Path, choice: Choice = Choice()) -> list[str]:  # noqa: B008
    config = InputConfig(paths=[str(path)], config=choice.config, split=choice.split)
    return [file.name for file in find_inputs(config, "elsewhere", find_benchmark(name))]


@pytest.mark.parametrize("name", CLONES)
def test_a_benchmark_takes_its_own_of_a_clone(tmp_path, name):
    there, card, expected = CLONES[name]
    assert of_benchmark(name.split()[0], laid_out(tmp_path, *there, card=card)) == expected


def test_evaluate_names_what_is_not_the_benchmark(tmp_path, capsys):
    folder = laid_out(tmp_path / "reward-bench", *REWARD_BENCH)
    words = ["evaluate", "--benchmark", "reward-bench", "--input", str(folder), "--output", str(tmp_path / "out")]
    assert main([*words, "--model", str(tmp_path / "none")]) == 2  # found out after the files were
    assert "not read (split raw): data/raw-00000-of-00001.parquet" in capsys.readouterr().err


def test_what_is_chosen_goes_before_what_the_benchmark_is(tmp_path):
    laid_out(tmp_path, *REWARD_BENCH)
    assert of_benchmark("reward-bench", tmp_path, Choice(split="raw")) == ["data/raw-00000-of-00001.parquet"]
    laid_out(tmp_path / "train", "data/raw-00000-of-00001.parquet")
    with pytest.raises(
        InputError, match=r"benchmark is the split 'filtered', which is not in .*; there are raw"
    ) as raised:
        of_benchmark("reward-bench", tmp_path / "train")
    assert obeyed(str(raised.value))[0] == ["input.split=raw"]


def test_rm_bench_has_each_item_once(tmp_path):
    row = {"id": "1", "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    for part in RM_BENCH:
        write(tmp_path / "data" / f"{part}_filtered.json", row)
    total = tmp_path / "data" / "total_dataset.json"
    total.write_text(json.dumps([{**row, "domain": part} for part in RM_BENCH]))
    benchmark = find_benchmark("rm-bench")
    files = find_files([str(tmp_path / "data")], default=benchmark.choice)
    files = files.without(benchmark.left_out([file.name for file in files]))
    assert sum(plan_file(file).rows for file in files) == 5
    assert "total_dataset has its items): chat_filtered.json" in files.notes()[-1]
    (file,) = files
    assert benchmark.shape(plan_file(file).head, load_config(None, [], []).input, file.name) == detect(
        list(plan_file(file).head), load_config(None, [], []).input
    )


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["data/train-00000-of-00003.csv", "data/train-00002-of-00003.csv"], r"shard 1 of 3 is missing \(2 files\)"),
        (
            ["data/train-00000-of-00001.csv", "data/train-00000-of-00001-1f.csv"],
            r"a shard is there more than once \(2 files\)",
        ),
        (
            [f"data/train-0000{i}-of-0000{n}.csv" for n in (1, 2) for i in range(n)],
            r"a shard is there more than once \(3 files\)",
        ),
        (["pairs.jsonl", "pairs.csv"], r"pairs\.csv and pairs\.jsonl seem to be one corpus in two forms"),
        (["a/pairs.jsonl", "a/pairs.jsonl.gz"], r"a/pairs\.jsonl and a/pairs\.jsonl\.gz seem to be one corpus"),
    ],
)
def test_files_that_are_missing_or_there_twice_are_refused(tmp_path, there, said):
    folder = laid_out(tmp_path / "the corpus", *there, "x.jsonl")
    with pytest.raises(InputError, match=said) as raised:
        find_files([str(folder)])
    _, [path] = obeyed(str(raised.value))
    assert 0 < len(find_files([path])) <= len(there)  # a file or a glob is a choice by itself
    assert len(find_files([f"{folder}/**/*"])) == len(there) + 1


def test_caches_of_datasets_are_no_data(tmp_path):
    laid_out(tmp_path, "gsm8k-train.arrow", "cache-0123abcd.arrow", "cache-0123abcd_00000_of_00002.arrow")
    files = find_files([str(tmp_path)])
    assert [file.name for file in files] == ["gsm8k-train.arrow"]
    assert {each.reason for each in files.skipped} == {"a cache of `datasets`"}
    assert [file.name for file in find_files([f"{tmp_path}/*.arrow"])] == ["gsm8k-train.arrow"]


def test_a_card_that_is_of_no_use_is_named(tmp_path):
    laid_out(tmp_path, "a.jsonl", card=DEFAULT)
    assert "name no file that is here): README.md" in " ".join(find_files([str(tmp_path)]).notes())
    laid_out(tmp_path, card="---\na: [\n---\n")
    assert "YAML cannot be understood" in " ".join(find_files([str(tmp_path)]).notes())
    laid_out(tmp_path, card="---\nreleased: 2026-13-01\n---\n")  # a date that there is not
    assert "YAML cannot be understood" in " ".join(find_files([str(tmp_path)]).notes())
