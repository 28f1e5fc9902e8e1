"""The least that a labelling flow on Ray Data costs to start: read, a tokenizer, an actor with a model, write.

    python benchmarks/bare_flow.py MODEL CORPUS OUTPUT

What one would write first, in one file: no error rows, no records, nothing apart from Ray's workers, no report.
`start_up.py` measures it beside `label`.
"""

import sys
from typing import Any

import pyarrow as pa
import ray


def tokenized(rows: pa.Table, model: str) -> pa.Table:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return rows.append_column("ids", pa.array([tokenizer(text)["input_ids"] for text in rows["chosen"].to_pylist()]))


class Scored:
    def __init__(self, model: str):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import torch

        with torch.inference_mode():
            sizes = [float(self.model(torch.tensor([ids])).logits.sum()) for ids in rows["ids"].to_pylist()]
        return rows.append_column("reward", pa.array(sizes))


def main(model: str, corpus: str, output: str) -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows: Any = ray.data.read_json(corpus, lines=True, ray_remote_args={"num_cpus": 0.25})
    rows = rows.map_batches(tokenized, batch_format="pyarrow", fn_args=(model,), num_cpus=0.25)
    actors = ray.data.ActorPoolStrategy(size=1)
    rows.map_batches(
        Scored, batch_format="pyarrow", fn_constructor_args=(model,), compute=actors, num_cpus=1
    ).write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
