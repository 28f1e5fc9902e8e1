"""Pages for people, without a script and without a network: labels, evaluations, runs; and the card of a model."""
