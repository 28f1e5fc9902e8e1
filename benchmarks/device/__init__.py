"""What `benchmarks/gpu.py` runs on a machine of which nothing is known but torch, transformers, numpy and pyarrow.

models       small and large models of random weights, and turns of the lengths of corpora
plain        what one would write with transformers alone: the reference and the rival
cases        one case after another, each caught, timed and written down at once
correctness  scorer, head, attention, learner, sampler against float32 on the CPU
memory       loading, weights handed over, memory that runs out
speed        tokens a second beside the floor of the FLOPs and transformers' own loops
profiles     where the time goes

No module here imports another rival, Ray, DeepSpeed, pydantic or rich.
"""
