"""What the documents say holds: examples parse, links lead somewhere, commands and fields exist, snippets are Python."""

import re
import shlex
from pathlib import Path
from typing import get_origin

import pytest

from jobs.__main__ import _flags, _parser
from pipeline.config import (
    EvaluateConfig,
    LabelConfig,
    SampleConfig,
    Section,
    ServeConfig,
    load_config_as,
    section_fields,
)
from pipeline.rl.config import RlConfig
from pipeline.training.config import OBJECTIVES, TrainConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    p
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md", "deploy/**/*.md")
    for p in ROOT.glob(pattern)
)
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("**/*.toml") if "rubrics" not in p.name)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
KINDS: dict[str, type[Section]] = {
    "label": LabelConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "train": TrainConfig,
    "rl": RlConfig,
    "serve": ServeConfig,
}  # by command; all but the first by a section of that name too
SECTIONS = {name: kind for kind in KINDS.values() for name in kind.model_fields}
NAMED = {name for name, kind in SECTIONS.items() if get_origin(kind.model_fields[name].annotation) is dict}
FIELD = re.compile(
    rf"(?<![\w./])(?:({'|'.join(SECTIONS.keys() - NAMED)})|({'|'.join(NAMED)})\.\w+)\.([a-z_0-9]+)(?![\w(])"
)  # of a section, or of one that has a name of the user's own, such as rewards.NAME.kind
FILE_ENDINGS = {"py", "toml", "json", "md", "parquet", "jsonl", "html"}
COMMAND = re.compile(r"(?:^|-- |^[A-Z_]+=\S+(?: [^)]*\))? )(?:endoreward|python -m jobs)((?: +.*)?)$")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))


def test_there_is_something_to_check() -> None:
    spoken = {match for p in DOCUMENTS for match in FIELD.findall(p.read_text())}
    assert {("rl", "", "algorithm"), ("", "rewards", "kind")} <= spoken
    assert {"README.md", "running.md", "store.md"} <= {p.name for p in DOCUMENTS}
    assert EXAMPLES


@each_example
def test_examples_parse(example: Path) -> None:
    config = _load(example)
    assert all(_reads(config)) and config.output.path


@each_example
def test_examples_name_what_is_in_the_repository(example: Path) -> None:
    config = _load(example)
    for place in _reads(config):
        made = isinstance(config, TrainConfig) and place.startswith(
            "out/"
        )  # by the commands that the example begins with
        assert made or (ROOT / place).exists(), f"{example.name} names {place}"
        assert not made or f"--output {place}" in example.read_text(), f"{example.name} does not say what makes {place}"
    assert config.output.path.startswith("out/"), "an example writes where .gitignore says"


def _reads(config: LabelConfig | TrainConfig | RlConfig) -> list[str]:
    """The model and the data that a run is of."""
    if isinstance(config, TrainConfig):
        return [config.policy.name, *(config.train.labels or [""])]
    if isinstance(config, RlConfig):
        return [config.policy.name, *(config.input.paths or [""]), *config.held_out.prompts]
    return [config.model.name, *(config.input.paths or [""])]


def _load(example: Path) -> LabelConfig | TrainConfig | RlConfig:
    """As the command that the example is for reads it."""
    config = load_config_as(_kind_of(example.read_text(), LabelConfig), str(example), [], [])
    assert isinstance(config, LabelConfig | TrainConfig | RlConfig)
    return config


def _kind_of(toml: str, otherwise: type[Section]) -> type[Section]:
    """Which command a configuration is for: the one that has a section of its own in it."""
    return next((kind for name, kind in KINDS.items() if f"[{name}]\n" in toml), otherwise)


@each_document
def test_toml_blocks_parse(document: Path, tmp_path: Path) -> None:
    for language, block in FENCE.findall(document.read_text()):
        if language == "toml":
            (tmp_path / "block.toml").write_text(block)
            load_config_as(_kind_of(block, EvaluateConfig), str(tmp_path / "block.toml"), [], [])


@each_document
def test_python_blocks_compile(document: Path) -> None:
    for language, block in FENCE.findall(document.read_text()):
        if language == "python":
            compile(block, str(document), "exec")


@each_document
def test_links_resolve(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    for link in LINK.findall(text):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), f"{document.name} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{document.name} links to {link}"


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_document
def test_commands_parse(document: Path) -> None:
    text = document.read_text()
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    lines += [line[4:] for line in text.splitlines() if line.startswith("    ")]
    for line in lines:
        found = COMMAND.search(line.strip())
        if found:
            arguments = shlex.split(
                found.group(1).partition(" > ")[0], comments=True
            )  # what it prints may go to a file
            try:
                parsed = _parser().parse_args(arguments)
            except SystemExit as stop:
                pytest.fail(f"{document.name}: {line.strip()} is refused ({stop.code})")
            kind = KINDS.get(arguments[0], EvaluateConfig) if arguments else EvaluateConfig
            given = _flags(parsed) if kind in (LabelConfig, SampleConfig, EvaluateConfig) else []
            toml = getattr(parsed, "config", None)
            here = str(ROOT / toml) if toml and (ROOT / toml).exists() else None
            load_config_as(kind, here, given, getattr(parsed, "set", []))


@each_document
def test_fields_exist(document: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", document.read_text())):
        for section, section_of_names, name in FIELD.findall(code):
            section = section or section_of_names
            if name not in FILE_ENDINGS:
                known = {
                    field for kind in KINDS.values() if section in kind.model_fields for field in _fields(kind, section)
                }
                assert name in known, f"{document.name} speaks of {section}.{name}"


def _fields(kind: type[Section], section: str) -> set[str]:
    return set(section_fields(kind, section))


def test_every_reason_of_an_error_row_is_explained() -> None:
    source = "".join(p.read_text() for p in (ROOT / "pipeline").glob("**/*.py"))
    reasons = set(re.findall(r'RowError\(\s*"([a-z_0-9]+)"', source))
    assert {"empty_response", "out_of_memory"} <= reasons
    table = (ROOT / "docs/running.md").read_text()
    assert not {reason for reason in reasons if f"`{reason}`" not in table}


def test_every_objective_and_its_metrics_are_explained() -> None:
    import torch

    from pipeline.training.objectives import Batch, objective_of

    text = (ROOT / "docs/training.md").read_text()
    table = text.partition("## Metrics")[2].partition("## ")[0]
    ones = torch.ones(4)
    batch = Batch(-ones, torch.tensor([2, 2]), torch.zeros(2, dtype=torch.float64), -ones, -ones, ones)
    for name in OBJECTIVES:
        assert f"**{name}**" in text, f"no equation of {name}"
        terms = objective_of(TrainConfig.model_validate({"train": {"objective": name}})).terms(batch)
        assert terms.metrics
        assert not {metric for metric in terms.metrics if f"`{metric}`" not in table}, name


def test_every_metric_of_online_rl_is_explained() -> None:
    import numpy as np
    import torch

    from pipeline.rl.algorithms import ALGORITHMS, algorithm_of
    from pipeline.rl.monitors import estimates, rollout_metrics
    from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
    from pipeline.training.objectives import Batch

    known = _metrics_of((ROOT / "docs/rl.md").read_text().partition("## Metrics")[2].partition("## ")[0])
    tokens = np.zeros(2, np.float32)
    rollout = Rollout([1, 2], "a", True, tokens, 0)
    group = Group(
        Prompt("1", [], False, [1]), [rollout] * 2, [Rewarded(1.0, {"NAME": 1.0}, np.zeros(2), None, tokens)] * 2
    )
    measured, estimated = rollout_metrics([group]), estimates([group])
    assert {"distinct", "rewards/NAME/std"} <= measured.keys() and "kl" in estimated
    assert not measured.keys() - known
    assert not {f"eval_{name}" for name in estimated} - known
    ones = torch.ones(4)
    lengths, rewards = torch.tensor([2, 2]), torch.zeros(2, dtype=torch.float64)
    batch = Batch(-ones, lengths, rewards, -ones, -ones, ones, entropies=ones, values=ones, returns=ones)
    for name in ALGORITHMS:
        config = RlConfig.model_validate({"rl": {"algorithm": name}, "ppo": {"value": "critic"}})
        terms = algorithm_of(config).terms(batch)
        assert {"kl", "entropy"} <= terms.metrics.keys()
        assert not terms.metrics.keys() - known, name


def _metrics_of(table: str) -> set[str]:
    """The names in its first column; one that begins with / stands in the place of the last word of the one before."""
    found: list[str] = []
    for names in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            found.append(found[-1].rpartition("/")[0] + name if name.startswith("/") else name)
    return set(found)


def test_every_column_of_the_store_is_explained() -> None:
    from pipeline.store import ERRORS, LABELS

    text = (ROOT / "docs/store.md").read_text()
    assert not {name for name in [*LABELS.names, *ERRORS.names] if f"`{name}`" not in text}
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text.partition("## errors")[0], re.MULTILINE))
    assert {name: rows[name] for name in LABELS.names} == {f.name: _named(f.type) for f in LABELS}


def _named(arrow_type: object) -> str:
    return str(arrow_type).replace("element: ", "").replace("item: ", "")


def test_a_step_of_a_walk_names_one_or_two_modules_that_are_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    walks = re.findall(r"^## The walk of [^\n]*\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert len(walks) == 4
    for walk in walks:
        steps = re.findall(r"^\| (\d+)[^|]*\|([^|]*)\|", walk, re.MULTILINE)
        assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
        for step, where in steps:
            modules = re.findall(r"`([^`]+)`", where)
            assert 1 <= len(modules) <= 2, (step, modules)
            assert all((ROOT / each).exists() or (ROOT / "pipeline" / each).exists() for each in modules), modules
