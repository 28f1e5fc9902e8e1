"""What RM-Bench would cost with a 7B and a 70B model on H100s: arithmetic, and the command that does it, checked by --dry-run.

    python benchmarks/evidence/cost.py MODEL

Nothing here ran on a GPU. The tokens are those that `label --dry-run` counts with MODEL's tokenizer, of the files in
../shared; the arithmetic is the floor of scorer_speed.py: what no exact scorer leaves out. Seconds are that arithmetic over
the peak of a GPU times two shares: of the peak that large products of matrices reach, an assumption, and of the floor that
the scorer reaches, 0.8, which is held on two cores of a CPU (benchmarks/README.md). The price of an hour is an assumption too.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from rewards import RESULTS, ROOT, provenance  # noqa: E402  needs the line above

PEAK = 989e12  # FLOP/s of an H100 SXM, bfloat16, dense, by its data sheet
OF_PEAK, OF_FLOOR = 0.6, 0.8
EUROS_AN_HOUR = 2.5
FILES = ("chat_filtered.json", "code_filtered.json")
PUBLISHED_ITEMS = 1327  # of RM-Bench's four domains (arXiv 2410.16184); the files here have fewer

Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A published model's sizes."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    gpus: int  # whose memory holds it in bfloat16

    @property
    def layer_weights(self) -> int:
        """Of one layer's products: queries and outputs, keys and values, the gated feed-forward block."""
        kv = self.hidden // self.heads * self.kv_heads
        return 2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.feed_forward

    def flops(self, tokens: float, scored: float, context: float) -> float:
        """Of `tokens` forwarded, each of which attends to `context` on average, and `scored` of them with logits."""
        trunk = 2 * self.layers * self.layer_weights * tokens + 4 * self.layers * self.hidden * tokens * context
        return trunk + 2 * self.hidden * self.vocabulary * scored


SHAPES = (
    Shape("7B (Qwen2.5-7B's shape)", 28, 3584, 18944, 28, 4, 152_064, 1),
    Shape("70B (Llama-3.1-70B's shape)", 80, 8192, 28672, 64, 8, 128_256, 2),
)


def counted(model: str, file: str, shape: Shape | None = None, rate: float | None = None) -> tuple[list[str], Json]:
    """The words of the command, and what its --dry-run counts; with a rate also its hours and price."""
    words = ["label", "--model", model, "--input", file, "--output", "out/rm-bench"]
    if shape and rate:
        gpus = ["--set", f"scorer.gpus_per_actor={shape.gpus}"] if shape.gpus > 1 else []
        words += [*gpus, "--tokens-per-second", f"{rate:.0f}", "--price", f"{EUROS_AN_HOUR * shape.gpus:g}"]
    with tempfile.TemporaryDirectory() as scratch:  # --dry-run writes nothing; this says so
        placed = [*words[:6], f"{scratch}/out", *words[7:], "--dry-run"]
        ran = subprocess.run([sys.executable, "-m", "jobs", *placed], cwd=ROOT, capture_output=True, text=True)
        if ran.returncode or list(Path(scratch).iterdir()):
            raise SystemExit(f"{' '.join(placed)}\n{ran.stdout}\n{ran.stderr}")
    return words, estimate(ran.stdout)


def estimate(shown: str) -> Json:
    """What a dry run's estimate says."""
    rows = {
        "rows": r"Rows +([\d,]+)",
        "responses": r"Responses +([\d,]+)",
        "response_tokens": r"Response tokens +([\d,]+)",
        "tokens": r"Tokens to forward +([\d,]+)",
    }
    made: Json = {
        name: int(re.search(pattern, shown)[1].replace(",", ""))  # type: ignore[index]
        for name, pattern in rows.items()
    }
    if found := re.search(r"Price +([\d.,]+)", shown):
        made["price"] = float(found[1].replace(",", ""))
    return made


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="whose tokenizer counts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results/evidence")
    arguments = parser.parse_args(given)
    places = [ROOT.parent / "shared" / "data" / "rm-bench" / name for name in FILES]
    counts = [counted(str(Path(arguments.model).resolve()), str(place))[1] for place in places]
    total = {name: sum(each[name] for each in counts) for name in counts[0]}
    prompts = (total["tokens"] - total["response_tokens"]) / total["rows"]
    context = prompts + total["response_tokens"] / total["responses"] / 2
    made: Json = {
        **provenance(arguments.model, f"python benchmarks/evidence/cost.py {Path(arguments.model).name}"),
        "files": list(FILES),
        "counts": total,
        "published_items": PUBLISHED_ITEMS,
        "peak": PEAK,
        "of_peak": OF_PEAK,
        "of_floor": OF_FLOOR,
        "euros_an_hour": EUROS_AN_HOUR,
        "models": [],
    }
    for shape in SHAPES:
        flops = shape.flops(total["tokens"], total["response_tokens"], context)
        bound = flops / PEAK
        seconds = bound / OF_PEAK / OF_FLOOR
        rate = total["tokens"] / seconds
        words, priced = counted(str(Path(arguments.model).resolve()), str(places[0]), shape, rate)
        scale = PUBLISHED_ITEMS / total["rows"]
        command = " ".join(["endoreward", *words]).replace(str(Path(arguments.model).resolve()), "MODEL")
        made["models"].append(
            {
                "name": shape.name,
                "gpus": shape.gpus,
                "flops": flops,
                "seconds_at_peak": bound,
                "seconds": seconds,
                "tokens_per_second": rate,
                "euros": seconds / 3600 * shape.gpus * EUROS_AN_HOUR,
                "published_seconds": seconds * scale,
                "published_euros": seconds * scale / 3600 * shape.gpus * EUROS_AN_HOUR,
                "command": command.replace(str(places[0]), "RM-Bench/data"),
                "dry_run": priced,
            }
        )
        print(json.dumps(made["models"][-1], indent=1))
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "cost.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
