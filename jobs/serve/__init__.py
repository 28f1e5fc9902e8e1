"""Rewards over HTTP: a server in one process, whose model answers many requests at once."""
