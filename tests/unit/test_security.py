"""What comes from others is data: a chat template, a corpus, a model folder, a configuration in a bucket. None of it has a
file read or code run that the operator's own command did not name. And no file that a run leaves holds a secret."""

import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import torch
from faulty_s3 import FaultyS3, of_a_module, of_a_test  # noqa: F401 - fixtures `endpoint` and `s3`
from label_stores import label_store
from tiny import CHATML, save_model

from jobs.__main__ import main
from jobs.stores.metrics import RunMetrics, StepMetrics
from pipeline import storage
from pipeline.config import (
    EvaluateConfig,
    LabelConfig,
    ModelConfig,
    SampleConfig,
    ServeConfig,
    TokensConfig,
    load_config,
    load_config_as,
)
from pipeline.corpus import find_files
from pipeline.errors import ConfigError, InputError, RowError, RunError
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.rewards.labellers import Endogenous, beside
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.config import RlConfig
from pipeline.storage import local_copy
from pipeline.store import documents
from pipeline.tokens.bounded import bounded
from pipeline.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
MARK = "hostile-was-here"
ROWS = [{"prompt": "What?", "chosen": "good", "rejected": "bad"}]

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAQ7XW9PLZ3MNB2VCD",
    "AWS_SECRET_ACCESS_KEY": "zQ8rT3vW5yB7nM9kL1jH4gF6dS2aP0oI8uYtRe/+",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr-session-5f2e",
    "HF_TOKEN": "hf_QzWsXeDcRfVtGbYhNuJmIkOlPq",
    "OPENAI_API_KEY": "sk-proj-9f8e7d6c5b4a39281706",
    "RAY_AUTH_TOKEN": "5d41402abc4b2a76b9719d911017c592",
    "WANDB_API_KEY": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    "ENDOREWARD_TOKEN": "bearer-3c59dc048e8850243be8079a5c74d079",
}
"""What an operator's environment holds; each value is one that nothing else has."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


# A chat template


ESCAPES = {
    "attributes of a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a string's format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a filter": "{{ messages | attr('__class__') | attr('__mro__') }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "of what it is given": "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "a module's import": "{{ lipsum.__globals__['__builtins__'].__import__('os').system('id') }}",
    "another template": "{% include '/etc/passwd' %}",
    "another's macros": "{% import '/etc/passwd' as x %}{{ x }}",
    "what it extends": "{% extends '/etc/passwd' %}",
    "a change of the messages": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "a change of a message": "{{ messages[0].update({'content': 'x'}) }}",
}


@pytest.mark.parametrize("name", [*ESCAPES])
def test_a_template_reaches_nothing_beside_the_conversation(model: Path, tmp_path: Path, name: str) -> None:
    """Alone, and with the messages in it: both ways that a template is run."""
    for text in (ESCAPES[name], CHATML + ESCAPES[name]):
        (tmp_path / "hostile.jinja").write_text(text)
        config = ModelConfig(name=str(model))
        try:
            renderer = open_renderer(config, TokensConfig(template=str(tmp_path / "hostile.jinja")))
            assert renderer.chat is not None
            shown = renderer.chat.render([{"role": "user", "content": "hello"}], None)
        except (RowError, ConfigError):
            continue
        assert not any(mark in shown for mark in ("root:", "class", "uid=", "builtins")), shown


ENDLESS = {
    "a loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        10.0,
        "come to an end",
    ),
    "an output": ("{{ 'x' * 99999999999 }}", 120.0, "refuses this conversation: MemoryError"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ENDLESS])
def test_a_template_without_end_ends_the_shard(
    model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, within_s, said = ENDLESS[name]
    monkeypatch.setattr(beside, "WITHIN_S", within_s)
    (tmp_path / "hostile.jinja").write_text(CHATML + text)
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    settings = {"model": {"name": str(model)}, "tokens": {"template": str(tmp_path / "hostile.jinja")}}
    assert said in prepared(EvaluateConfig.model_validate(settings), tmp_path / "a.jsonl")


def prepared(config: EvaluateConfig, source: Path) -> str:
    """What is said of a corpus as a run prepares it: an error's sentence, or the rows' failures."""
    from pipeline.corpus import detect, plan_file, read_shards

    [file] = find_files([str(source)])
    plan = plan_file(file, shard_rows=10)
    shape = detect(list(plan.head), config.input)
    [(shard, rows)] = list(read_shards(file, "auto", plan.shards))
    preparation = beside.Preparation()
    try:
        done = preparation.prepare(Endogenous(config, config.model), shard, 0, rows, shape)
        call = preparation.beside.call
        assert call(bounded, os.getpid) == call(os.getpid)  # it renders where it is, in no third process
    except RunError as error:
        return str(error)
    finally:
        preparation.beside.stop()
    return " ".join(failure.detail for failure in done.failures)


# A corpus


NAMES = (
    "../../up.jsonl",
    "-rf.jsonl",
    "$(touch hostile).jsonl",
    "`id`.jsonl",
    "a\nb.jsonl",
    "<script>alert(1)</script>.jsonl",
)
TEXTS = (
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "{{ 7 * 7 }}",
    "file:///etc/passwd",
    "=cmd|'/c calc'!A1",
    "\x00\x1b[2J",
)


def test_a_corpus_of_markup_and_paths_stays_text(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text, "chosen": text, "rejected": "no", "id": text} for text in TEXTS]
    store = label_store(tmp_path / "store", model, rows, shard_rows=3)
    table = pq.read_table(tmp_path / "store" / "labels").to_pylist()
    shown = {row["response"] if isinstance(row.get("response"), str) else json.dumps(row, default=str) for row in table}
    assert len(table) == 2 * len(TEXTS) and all(any(t[:5] in each for each in shown) for t in ("../..", "{{ 7 "))
    assert store.progress().labels == len(table)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert all(name == "store.jsonl" or name.startswith("store/") for name in made)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_under_whatever_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its row is labelled, and its name does nothing else."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    store = label_store(tmp_path / "store", model, ROWS, name=name.replace("/", "_"))
    [file] = [stored.file for stored in store.inputs()]
    assert os.path.dirname(file.uri) == str(tmp_path) and file.name == name.replace("/", "_")
    labels = pq.read_table(tmp_path / "store" / "labels").to_pylist()
    assert sorted(label["id"] for label in labels) == [f"{file.name}:0:{side}:0:0" for side in ("chosen", "rejected")]
    assert main(["validate", store.uri]) == main(["status", store.uri]) == 0
    assert not os.listdir(work) and sorted(os.listdir(tmp_path)) == sorted([file.name, "store", "work"])


# A model folder


class Bomb:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


def hostile_model(folder: Path, model: Path, kind: str, mark: Path) -> None:
    """The model with something in its folder that would make a folder `mark`, were it run."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    code = f"import os\nos.mkdir({str(mark)!r})\n"
    config = json.loads((folder / "config.json").read_text())
    if kind == "pickled weights":
        (folder / "model.safetensors").unlink()
        torch.save(Bomb(mark), folder / "pytorch_model.bin")
    elif kind == "pickled weights, indexed":
        (folder / "model.safetensors").unlink()
        torch.save(Bomb(mark), folder / "evil.bin")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "evil.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif kind == "an index that leaves the folder":
        (folder / "model.safetensors").unlink()
        torch.save(Bomb(mark), folder.parent / "evil.bin")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "../evil.bin"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "code of the model":
        (folder / "modeling_evil.py").write_text(code)
        config["auto_map"] = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    elif kind == "code of the tokenizer":
        (folder / "tok_evil.py").write_text(code)
        told = json.loads((folder / "tokenizer_config.json").read_text())
        told |= {"auto_map": {"AutoTokenizer": [None, "tok_evil.T"]}, "tokenizer_class": "T"}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    elif kind == "code of another's hub":
        config["auto_map"] = {"AutoModelForCausalLM": "evil/repository--modeling_evil.M"}
        config["model_type"] = "evil"
    elif kind == "generation":
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code + "def generate(*a, **k): pass\n")
    elif kind == "an adapter":
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder.parent / "other")})
        )
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    elif kind == "kernels":
        config["attn_implementation"] = config["_attn_implementation"] = "evil/kernels"
    (folder / "config.json").write_text(json.dumps(config))


KINDS = (
    "pickled weights", "pickled weights, indexed", "an index that leaves the folder", "code of the model",
    "code of the tokenizer", "code of another's hub", "generation", "an adapter", "kernels",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_runs_no_code(model: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / MARK
    hostile_model(tmp_path / "evil", model, kind, mark)
    before = set(sys.modules)
    config = ModelConfig(name=str(tmp_path / "evil"))
    for load in (lambda: load_tokenizer(config), lambda: load_model(config, "cpu", 0)):
        try:
            load()
        except ConfigError as error:
            assert str(tmp_path / "evil") in str(error)
    assert not mark.exists()
    assert not [name for name in set(sys.modules) - before if "evil" in name]


# A bucket


def test_a_bucket_writes_nothing_beside_the_copy_of_its_folder(
    s3: FaultyS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = boto3.client("s3")
    for name in ("config.json", "../../../escaped", "/absolute"):
        bucket.put_object(Bucket=s3.bucket, Key=f"model/{name}", Body=b"{}")
    with pytest.raises((ConfigError, RunError)):
        local_copy(f"{s3.uri}/model")
    assert not (tmp_path / "escaped").exists() and not Path("/absolute").exists()


LABEL = [
    ("model.trust_remote_code", '[model]\nname = "org/model"\ntrust_remote_code = true\n'),
    ("model.allow_pickle", '[model]\nname = "org/model"\nallow_pickle = true\n'),
    ("model.name", '[model]\nname = "/home/operator/model"\n'),
    ("model.name", '[model]\nname = "local:///home/operator/model"\n'),
    ("input.paths", '[input]\npaths = ["s3://bucket/a.jsonl", "/home/operator/.aws/credentials"]\n'),
    ("tokens.template", '[tokens]\ntemplate = "/etc/passwd"\n'),
    ("tokens.template", '[tokens]\ntemplate = "local:///etc/hostname"\n'),
    ("tokens.rubrics", '[tokens]\nrubrics = "rubrics.toml"\n'),
    ("output.path", '[output]\npath = "file:///home/operator"\n'),
    ("output.path", '[output]\npath = "local:///home/operator"\n'),
    ("output.path", '[output]\npath = "out"\n'),
    ("run.ray_address", '[run]\nray_address = "ray://evil:10001"\n'),
    *(
        ("input.paths", f"[input]\npaths = [{json.dumps(place)}]\n")
        for place in (
            "local:///etc/passwd", "local://etc/passwd", "LOCAL:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd",
            "local:/etc/passwd", "mock:///etc/passwd", "memory://etc/passwd", "hdfs:///etc/passwd", "viewfs:///etc/passwd",
            "gopher://x", "~/corpus", "corpus", "auto", "",
        )
    ),
]  # fmt: skip
RL = [
    ("rewards.mine.function", '[rewards.mine]\nkind = "function"\nfunction = "reward.py:reward"\n'),
    ("rewards.mine.function", '[rewards.mine]\nkind = "function"\nfunction = "local:///x/reward.py:reward"\n'),
    ("rewards.mine.function", '[rewards.mine]\nkind = "function"\nfunction = "s3://bucket/reward.py:reward"\n'),
    ("rewards.mine.model", '[rewards.mine]\nmodel = "../model"\n'),
    ("rewards.mine.reference", '[rewards.mine]\nreference = "local:///model"\n'),
    ("held_out.check", '[held_out]\ncheck = "check.py:check"\n'),
    ("held_out.prompts", '[held_out]\nprompts = ["local:///etc/passwd"]\n'),
    ("learner.deepspeed", '[learner]\ndeepspeed = "/etc/passwd"\n'),
    ("policy.trust_remote_code", '[policy]\nname = "org/model"\ntrust_remote_code = true\n'),
    ("rl.replay", '[rl]\nreplay = "local:///home/operator/run/rollouts"\n'),
]
SERVE = [
    ("serve.token_variable", '[serve]\ntoken_variable = "HOME"\n'),
    ("serve.models", '[serve.models]\na = "org/model"\nb = "/etc/m"\n'),
    ("serve.models", '[serve.models]\na = "org/model"\nb = "local:///etc/m"\n'),
]
EVALUATE = [
    ("endpoint.key_variable", '[endpoint]\nkey_variable = "AWS_SECRET_ACCESS_KEY"\n'),
    ("judge.endpoint", '[judge]\nendpoint = "https://evil/v1"\n'),
    ("evaluate.labels", '[evaluate]\nlabels = "labels/"\n'),
    ("evaluate.labels", '[evaluate]\nlabels = "local:///home/operator/labels"\n'),
]
TRAIN = [
    ("train.labels", '[train]\nlabels = ["s3://bucket/labels", "local:///home/operator/labels"]\n'),
    ("policy.name", '[policy]\nname = "file:/home/operator/model"\n'),
    ("reference.name", '[reference]\nname = "local:///home/operator/model"\n'),
    ("learner.deepspeed", '[learner]\ndeepspeed = "local:///etc/passwd"\n'),
    ("output.path", '[output]\npath = "/home/operator/run"\n'),
]
SAMPLE = [
    ("model.name", '[model]\nname = "./model"\n'),
    ("input.paths", '[input]\npaths = ["local:///etc/passwd"]\n'),
    ("input.picture_root", '[input]\npicture_root = "local:///home/operator"\n'),
    ("sampler.endpoint", '[sampler]\nendpoint = "https://evil/v1"\n'),
    ("tokens.template", '[tokens]\ntemplate = "FILE:///etc/hostname"\n'),
]
OF_KINDS: list[tuple[Any, list[tuple[str, str]]]] = [
    (LabelConfig, LABEL),
    (RlConfig, RL),
    (EvaluateConfig, EVALUATE),
    (ServeConfig, SERVE),
    (TrainConfig, TRAIN),
    (SampleConfig, SAMPLE),
]
CASES = [(kind, field, text) for kind, texts in OF_KINDS for field, text in texts]


@pytest.mark.parametrize(("kind", "field", "text"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_configuration_in_a_bucket_names_nothing_of_this_machine(
    s3: FaultyS3,
    kind: Any,
    field: str,
    text: str,
) -> None:
    place = f"{s3.uri}/{field}.toml"
    documents.write_bytes(place, text.encode())
    with pytest.raises(ConfigError, match="cannot say") as refused:
        load_config_as(kind, place, [], [])
    lines = [line for line in str(refused.value).splitlines() if "cannot say" in line]
    assert len(lines) == 1 and lines[0].strip().startswith(f"{field}: ")


@pytest.mark.parametrize("scheme", ["local", "LOCAL", "FILE", "mock", "memory"])
def test_no_scheme_opens_this_machine(tmp_path: Path, scheme: str) -> None:
    """What pyarrow takes for the local disk, or for no storage at all, is neither read nor listed nor written to."""
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    place = f"{scheme}://{tmp_path}/a.jsonl"
    for use in (
        storage.read_bytes,
        storage.exists,
        lambda place: find_files([place]),
        lambda place: storage.create(place, b""),
    ):
        with pytest.raises((ConfigError, InputError), match=f"{scheme}://"):
            use(place)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_what_it_may_say_is_read_and_the_operator_may_say_all(s3: FaultyS3, tmp_path: Path) -> None:
    place = f"{s3.uri}/good.toml"
    text = (
        '[model]\nname = "org/model"\n[input]\npaths = ["s3://bucket/a/*.jsonl", "hf://datasets/org/set", "gs://b/c"]\n'
        '[tokens]\ntemplate = "none"\n[output]\npath = "s3://bucket/out"\n'
    )
    documents.write_bytes(place, text.encode())
    assert load_config(place, [], []).model.name == "org/model"
    documents.write_bytes(place, LABEL[0][1].encode())
    assert load_config(place, [], ["model.trust_remote_code=true"]).model.trust_remote_code
    (tmp_path / "own.toml").write_text(LABEL[0][1])
    assert load_config(str(tmp_path / "own.toml"), [], []).model.trust_remote_code


# Secrets


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    yield SECRETS


def test_no_file_of_a_store_and_no_message_holds_a_secret(
    secrets: dict[str, str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_store(tmp_path / "store", model, ROWS)
    for words in (
        ["status", tmp_path / "store"], ["validate", tmp_path / "store"], ["sweep", tmp_path / "store"],
        ["report", tmp_path / "store"], ["label", "--model", "org/absent", "--input", tmp_path / "store.jsonl",
         "--output", tmp_path / "out", "--dry-run"],
        ["label", "--model", model, "--input", "s3://127.0.0.1-no-such-bucket/x", "--output", tmp_path / "out", "--set",
         "run.nothing=1"],
    ):  # fmt: skip
        main(list(map(str, words)))
    said = capsys.readouterr()
    held = {"terminal": (said.out + said.err).encode()}
    held |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(held) > 5 and not holding(held)


def test_no_metric_holds_a_secret(
    secrets: dict[str, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in its name, its description nor its tags. What a real run shows is scraped in
    tests/integration/test_submission.py."""
    shown: list[str] = []

    def record(metric: Any, value: float, tags: dict[str, str]) -> None:
        shown.append(json.dumps([metric.info, value, tags], default=str))

    monkeypatch.setattr("ray.util.metrics.Gauge.set", record)
    monkeypatch.setattr("ray.util.metrics.Counter.inc", record)
    store = label_store(tmp_path / "store", model, [*ROWS, {"prompt": "x", "chosen": "", "rejected": "y"}])
    labelled, trained = RunMetrics(store.uri, 2), StepMetrics(store.uri, 3)
    for each in store.records():
        labelled.add(each, 10, 1.0)
    trained.update({"step": 1, "loss": 0.5, "warnings": ["w"]})
    text = "\n".join(shown).encode()
    assert b"empty_response" in text and b"endoreward_step_metric" in text and not holding({"metrics": text})


def holding(held: dict[str, bytes]) -> list[str]:
    """Which texts hold which secret."""
    return [
        f"{place}: {name}" for place, text in held.items() for name, value in SECRETS.items() if value.encode() in text
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_file_of_a_run_on_ray_holds_a_secret(
    secrets: dict[str, str], model: Path, tmp_path: Path, cli: Any, request: pytest.FixtureRequest
) -> None:
    """With what its workers print, and what Ray logs of them."""
    rows = [{"prompt": f"What is {i}?", "chosen": "good", "rejected": "bad"} for i in range(20)] + [{"prompt": 3}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ray = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))  # a short one: its sockets' names have their bound
    request.addfinalizer(lambda: shutil.rmtree(ray, ignore_errors=True))
    environment = {**secrets, "RAY_TMPDIR": str(ray)}
    ran = cli(
        "label", "--model", model, "--input", tmp_path / "a.jsonl", "--output", tmp_path / "out", "--set",
        "run.verbose=true", "--set", "run.num_cpus=2", env=environment, timeout=500,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    held = {"terminal": (ran.stdout + ran.stderr).encode()}
    files = [p for place in (tmp_path, ray) for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
    held |= {str(path): path.read_bytes() for path in files}
    assert any(path.name == "manifest.json" for path in files) and not holding(held)
