"""One node: an arbiter that forks and reaps, a dispatcher that talks to the store, workers that run user code."""
