"""What `train` and `rl` share: the run from lock to manifest, starting the workers of Ray Train, and life within one."""
