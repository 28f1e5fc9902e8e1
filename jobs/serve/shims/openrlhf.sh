# endoreward as OpenRLHF's remote reward: flags of openrlhf.cli.train_ppo_ray. Checked with OpenRLHF 0.11.2.
# OpenRLHF clips rewards to -10 and 10 by default, which cuts sums of nats, and its client sends no token: the server has to be on
# the same machine, or behind what adds the header. Where a request fails five times the response has no reward. One model of
# several is ?model=NAME behind the address.
--reward.remote_url http://127.0.0.1:8000/get_reward
--reward.clip_range -1000 1000
