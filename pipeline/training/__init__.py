"""Policy optimization on stored labels: what a step sees, the policy's log-probabilities, what is written of a run.

Knows neither Ray nor DeepSpeed: `actors/learner.py` has the optimizer, `jobs/train/run.py` the cluster.
"""
