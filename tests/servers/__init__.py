"""Real servers for tests, started by the tests on free ports and in folders of their own, and a proxy that fails on demand."""
