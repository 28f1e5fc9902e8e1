"""The benchmarks that `evaluate` knows, by name. `base` says what one is; every other module here is one, or in `maths` a
table of them."""

from pipeline.config import BestOfNConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.benchmarks.base import Benchmark
from pipeline.evaluation.benchmarks.best_of_n import BestOfN
from pipeline.evaluation.benchmarks.dsp import DomainPreference
from pipeline.evaluation.benchmarks.kto import Kto
from pipeline.evaluation.benchmarks.maths import MATHS
from pipeline.evaluation.benchmarks.pairs import Pairs
from pipeline.evaluation.benchmarks.process_bench import ProcessBench
from pipeline.evaluation.benchmarks.reward_bench import RewardBench
from pipeline.evaluation.benchmarks.reward_bench_2 import RewardBench2
from pipeline.evaluation.benchmarks.rm_bench import RMBench
from pipeline.evaluation.benchmarks.rmgap import Rmgap
from pipeline.evaluation.benchmarks.vision import MultimodalRewardBench, VLRewardBench

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        RMBench(),
        RewardBench(),
        RewardBench2(),
        DomainPreference(),
        Rmgap(),
        ProcessBench(),
        VLRewardBench(),
        MultimodalRewardBench(),
        Pairs(),
        Kto(),
        BestOfN(),
        *MATHS.values(),
    )
}


def find_benchmark(name: str, best_of_n: BestOfNConfig | None = None) -> Benchmark:
    """The benchmark of this name; best-of-n as configured. Raises ConfigError that lists what there is."""
    if name == BestOfN.name:
        return BestOfN(best_of_n)
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    width = max(map(len, BENCHMARKS))
    known = "\n".join(f"  {each:{width}}  {benchmark.about}" for each, benchmark in BENCHMARKS.items())
    problem = f"there is no benchmark {name!r}" if name else "no benchmark is named"
    raise ConfigError(f"{problem}; give --benchmark one of\n{known}")
