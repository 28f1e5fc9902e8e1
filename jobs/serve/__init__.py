"""Rewards over HTTP: a server whose models answer many requests at once, in its own process or as replicas on Ray Serve."""
