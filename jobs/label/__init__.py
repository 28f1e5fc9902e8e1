"""`label`, and what completes any store of labels: the plan of its shards, the flow over actors, a first look."""
