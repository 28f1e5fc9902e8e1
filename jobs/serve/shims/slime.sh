# endoreward as slime's remote reward: flags of train.py. Read at source (slime 0.3.1); it has not run here.
# Its client sends no token: the server has to be on the same machine, or behind what adds the header. One model of
# several is ?model=NAME behind the address.
--rm-type remote_rm
--rm-url http://127.0.0.1:8000/rm

# Or as a teacher, whose log-probability of each token it distils, in the place of the two above:
# --use-opd --opd-type sglang --rm-url http://127.0.0.1:8000/generate
# --custom-rm-path slime.rollout.on_policy_distillation.reward_func
# --custom-reward-post-process-path slime.rollout.on_policy_distillation.post_process_rewards
