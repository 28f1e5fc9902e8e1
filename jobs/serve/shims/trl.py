"""endoreward as a reward function of TRL. Checked with TRL 1.16.0.

Its place is `reward_funcs` of GRPOTrainer or RLOOTrainer; model="NAME" beside the address where the server has several. In the
trainer's process: endoreward.reward("MODEL").
"""

import endoreward

reward_funcs = endoreward.remote("http://127.0.0.1:8000")
