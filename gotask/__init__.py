"""GoTask: a task queue that runs with nothing else installed and loses nothing it accepted."""

__version__ = "0.1.0"
