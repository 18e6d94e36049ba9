"""What a job's result must be: a function of its payload, for the task and for the test that checks it."""

import hashlib


def answer(n: int) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()
