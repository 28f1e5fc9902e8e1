"""What a row costs beside the model: reading, rendering, tokenising, making labels and writing them, with a scorer that
answers at once.

    python benchmarks/rows.py [--rows 2000] [--ray-rows 50000] [--tokenizer FOLDER]

Rows per CPU second of one core, against a floor in the same run: the same tokenizer's `encode_batch` of the distinct texts
(each prompt as rendered, each response) and one Parquet write of the labels. The three corpora have the lengths of HH (pairs
of transcripts), of UltraFeedback (a prompt and four responses) and of TinyStories (plain text); HH and TinyStories are read
from ../shared where it is. Then rows of HH's kind, from one gzip file, through Ray: the CPU seconds of driver, raylet and
workers, from the first tenth of the shards on, so that starting is apart; after --seconds it is left where it is. The
figures go to benchmarks/results/rows.json.

Without --tokenizer a byte-level BPE with a ChatML template is trained on the rows themselves.
"""

import argparse
import contextlib
import gc
import gzip
import itertools
import json
import os
import pickle
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import transformers  # noqa: E402
from instant import Instant, InstantSpec  # noqa: E402
from machine import CONSOLE, ROOT, SHARED, describe, table, verdict  # noqa: E402
from tiny import CHATML  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from pipeline.apart import unpickled  # noqa: E402
from pipeline.config import LabelConfig  # noqa: E402
from pipeline.corpus import InputFile, Shape, detect, find_files, plan_file, read_shards  # noqa: E402
from pipeline.corpus.files.shards import FilePlan  # noqa: E402
from pipeline.rewards.labellers import Endogenous, Labeller  # noqa: E402
from pipeline.rewards.labellers.beside import Preparation  # noqa: E402
from pipeline.rewards.labelling import Prepared  # noqa: E402
from pipeline.store import LabelStore, StoredInput, commit, fingerprint  # noqa: E402
from pipeline.store.schema import Label, labels_table  # noqa: E402

AT_LEAST, THROUGH_RAY = 0.5, 0.8
VOCABULARY = 16384
ENOUGH = 50_000  # rows from which on the share through Ray is held
LOOKED_AFTER_S = 5.0
RESULT = ROOT / "benchmarks/results/rows.json"
Row = dict[str, Any]


# Corpora


def sentences(seed: int) -> Iterator[str]:
    """Texts of words whose frequencies fall off as those of a language do; `send` a number of words."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lexicon = ["".join(rng.choice(letters, size)) for size in rng.integers(1, 10, 8000)]
    drawn = (rng.zipf(1.3, 1 << 20) - 1) % len(lexicon)
    begin, text = 0, ""
    while True:
        count = yield text
        begin = (begin + 1) if begin + 2 * (count or 1) > len(drawn) else begin + (count or 1)
        words = [lexicon[i] for i in drawn[begin : begin + (count or 1)]]
        text = " ".join(word + "." if i % 11 == 10 else word for i, word in enumerate(words)).capitalize()


def made(kind: str, number: int, seed: int = 0) -> Iterator[Row]:
    """Rows of a kind's lengths, drawn."""
    rng, words = np.random.default_rng(seed), sentences(seed)
    next(words)

    def draw(mean: float, deviation: float) -> str:
        return words.send(int(np.clip(rng.lognormal(mean, deviation), 2, 600)))

    for _ in range(number):
        if kind == "lists":
            yield {"prompt": draw(4.3, 1.0), "responses": [draw(5.0, 0.7) for _ in range(4)], "source": "made"}
        elif kind == "text":
            yield {"text": draw(5.1, 0.3)}
        else:
            turns = int(rng.integers(0, 4))
            begun = "".join(f"\n\nHuman: {draw(2.6, 0.8)}\n\nAssistant: {draw(3.2, 0.8)}" for _ in range(turns))
            begun += f"\n\nHuman: {draw(2.6, 0.8)}\n\nAssistant: "
            yield {"chosen": begun + draw(3.3, 0.9), "rejected": begun + draw(3.3, 0.9)}


def rows_of(kind: str, number: int) -> list[Row]:
    """Rows of ../shared where it has such, over and over, else made ones."""
    source = {"pairs": "hh-rlhf/harmless-base-test.jsonl.gz", "text": "tinystories/stories.jsonl"}.get(kind)
    path = SHARED / "data" / source if source else None
    if path is None or not path.exists():
        return list(made(kind, number))
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        real = [json.loads(line) for line in lines]
    return [{**row, "copy": i // len(real)} for i, row in zip(range(number), itertools.cycle(real), strict=False)]


def trained(texts: Iterator[str]) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of these texts, with GPT-2's words and a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["</s>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", model_max_length=8192)
    fast.chat_template = CHATML
    return fast


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)


# One core


class Corpus:
    """A file of rows, planned, and the labeller of its run."""

    def __init__(self, folder: Path, kind: str, number: int, tokenizer: Path):
        self.place = folder / f"{kind}-{number}.jsonl.gz"
        with gzip.open(self.place, "wt", compresslevel=1) as out:
            out.writelines(json.dumps(row) + "\n" for row in rows_of(kind, number))
        template = "none" if kind == "text" else "auto"
        self.config = LabelConfig.model_validate({"model": {"name": str(tokenizer)}, "tokens": {"template": template}})
        self.labeller: Labeller = Endogenous(self.config, self.config.model)
        self.file: InputFile = next(iter(find_files([str(self.place)])))
        self.plan: FilePlan = plan_file(self.file, shard_rows=self.config.input.shard_rows)
        self.shape: Shape = detect(list(self.plan.head), self.config.input, self.file.name)

    def opened(self, place: Path) -> LabelStore:
        store = LabelStore(str(place))
        store.open_for_writing(self.labeller.describe("float32"))
        store.add_input(StoredInput(self.file, "auto", self.shape, self.plan))
        return store


def flow(corpus: Corpus, store: LabelStore) -> list[Label]:
    """The steps of jobs/label/flow.py in this process, with what pickling between them costs."""
    engine, made_labels = Instant(), []
    for shard, raw in read_shards(corpus.file, "auto", corpus.plan.shards):
        raw = _carried(raw)
        prepared: Prepared = _carried(corpus.labeller.prepare(shard, 0, raw, corpus.shape))
        answers = _carried(engine.answer(_carried(prepared.requests)))
        labels, failures = corpus.labeller.finish(prepared, answers)
        commit(store.uri, shard, "0" * 64, 0, labels, failures)
        made_labels += labels
    return made_labels


def _carried(value: Any) -> Any:
    return unpickled(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def floor(tokenizer: Any, labels: list[Label], place: Path) -> float:
    """CPU seconds of tokenising each distinct text once, and of one Parquet write."""
    prompts = {label.prompt_token_ids.tobytes(): label.prompt_token_ids for label in labels}  # type: ignore[union-attr]
    responses = {label.token_ids.tobytes(): label.token_ids for label in labels}  # type: ignore[union-attr]
    texts = [tokenizer.decode(ids) for ids in (*prompts.values(), *responses.values())]
    written: pa.Table = labels_table(labels)
    began = time.process_time()
    tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    pq.write_table(written, place, compression="zstd")
    return time.process_time() - began


def on_one_core(folder: Path, kind: str, number: int, tokenizer: Path, repeats: int) -> tuple[Corpus, list[float]]:
    """Prints nothing. CPU seconds of flow and floor, and the median of their ratio."""
    corpus = Corpus(folder, kind, number, tokenizer)
    fast = corpus.labeller.renderer.tokenizer
    spent: list[tuple[float, float]] = []
    for repeat in range(repeats + 1):
        store = corpus.opened(folder / f"{kind}-{number}-store-{repeat}")
        began = time.process_time()
        labels = flow(corpus, store)
        took = time.process_time() - began
        gc.freeze()  # as in the processes that do this in a run
        spent.append((took, floor(fast, labels, folder / "floor.parquet")))
    spent = spent[1:]  # the first calls of a process are slower
    ratio = statistics.median(least / took for took, least in spent)
    return corpus, [*(statistics.median(each) for each in zip(*spent, strict=True)), ratio]


# Through Ray


class Spent(threading.Thread):
    """CPU seconds of this process and all that it has started (raylet, workers, the processes beside them), also of those
    that have ended; looked at now and then, and without what looking costs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.by_process: dict[tuple[int, float], float] = {}
        self.looking = 0.0  # CPU seconds
        self.lock = threading.Lock()

    def run(self) -> None:
        while True:
            time.sleep(LOOKED_AFTER_S)
            self.seconds()

    def seconds(self) -> float:
        with self.lock:
            began = time.thread_time()
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self.by_process[process.pid, process.create_time()] = times.user + times.system
            spent = sum(self.by_process.values()) - self.looking
            self.looking += time.thread_time() - began
            return spent


def through_ray(folder: Path, corpus: Corpus, seconds: float) -> tuple[int, float, float]:
    """Rows, CPU seconds and seconds from the first tenth of the shards on; what is done by then after so many seconds."""
    from jobs.cluster import Pool, cluster
    from jobs.label.flow import label_shards
    from jobs.label.plan import pending
    from jobs.label.work import Target

    store = corpus.opened(folder / "ray-store")
    target = Target(store.uri, fingerprint.digest(corpus.labeller.describe("float32")))
    backlog = pending(store, store.inputs(), False)
    spec = InstantSpec(corpus.config.model, "cpu", 0, 1, 1, 0)
    run = corpus.config.run.model_copy(update={"num_cpus": 2})
    rows, before, begun, moment, began = 0, 0, 0.0, 0.0, time.perf_counter()
    skipped = corpus.plan.rows // 10
    clock = Spent()
    clock.start()
    with cluster(run, data=False):
        preparations = [Preparation(), Preparation()]  # as `label` has them on two cores
        for done in label_shards(backlog, corpus.labeller, target, spec, Pool(1, 1, 2, 0), preparations=preparations):
            rows += done.record.shard.rows
            if not begun and rows >= skipped:
                begun, moment, before = clock.seconds(), time.perf_counter(), rows
            if time.perf_counter() - began > seconds:
                break
        if not begun:
            raise SystemExit(
                f"the first tenth of {corpus.plan.rows:,} rows took more than {seconds:g} s; raise --seconds"
            )
        spent, took = clock.seconds() - begun, time.perf_counter() - moment
    return rows - before, spent, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="of each corpus on one core")
    parser.add_argument("--ray-rows", type=int, default=ENOUGH, help="through Ray; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=360.0, help="after which the run through Ray is left")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="a folder of Hugging Face, of any model with a chat template")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tokenizer = options.tokenizer or folder / "tokenizer"
        if options.tokenizer is None:
            samples = itertools.chain.from_iterable(rows_of(kind, 1000) for kind in ("pairs", "lists", "text"))
            trained(texts_in(list(samples))).save_pretrained(tokenizer)
            sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            config = transformers.LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=8192, **sizes)
            transformers.LlamaForCausalLM(config).save_pretrained(tokenizer)  # never loaded; its folder names it
        shown = table(
            "A row beside the model, CPU seconds of one core", "", "rows", "ms a row", "floor", "rows/s", "of it"
        )
        claims: dict[str, bool] = {}
        figures: dict[str, Any] = {}
        per_row = 0.0
        for kind in ("pairs", "lists", "text"):
            corpus, (took, least, ratio) = on_one_core(folder, kind, options.rows, tokenizer, options.repeats)
            each = took / corpus.plan.rows
            per_row = each if kind == "pairs" else per_row
            shown.add_row(
                kind, f"{corpus.plan.rows:,}", f"{1e3 * each:.3f}", f"{1e3 * least / corpus.plan.rows:.3f}",
                f"{1 / each:,.0f}", f"{ratio:.2f}",
            )  # fmt: skip
            figures[kind] = {"rows": corpus.plan.rows, "ms": 1e3 * each, "floor_ms": 1e3 * least / corpus.plan.rows}
            figures[kind] |= {"share": ratio, "load": os.getloadavg()[0]}
            claims[f"{kind}: at least {AT_LEAST} of the floor ({ratio:.2f})"] = ratio >= AT_LEAST
        if options.ray_rows:
            corpus = Corpus(folder, "pairs", options.ray_rows, tokenizer)
            rows, spent, took = through_ray(folder, corpus, options.seconds)
            share = per_row * rows / spent
            shown.add_row(
                "pairs, through Ray", f"{rows:,}", f"{1e3 * spent / rows:.3f}", f"{1e3 * per_row:.3f}",
                f"{rows / spent:,.0f}", f"{share:.2f}",
            )  # fmt: skip
            figures["ray"] = {"rows": rows, "ms": 1e3 * spent / rows, "one_core_ms": 1e3 * per_row, "share": share}
            figures["ray"] |= {"rows_per_second": rows / took, "load": os.getloadavg()[0]}
            if options.ray_rows >= ENOUGH:
                claims[f"through Ray: done within {options.seconds:g} s"] = rows >= 0.89 * corpus.plan.rows
                said = f"through Ray: at least {THROUGH_RAY} of one core's rows per CPU second ({share:.2f})"
                claims[said] = share >= THROUGH_RAY
            CONSOLE.print(f"through Ray: {rows / took:,.0f} rows a second")
    CONSOLE.print(shown)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": describe(), "figures": figures}, indent=1) + "\n")
    verdict(claims)


if __name__ == "__main__":
    main()
