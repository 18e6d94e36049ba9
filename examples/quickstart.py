"""The shortest whole program: a task, a job, its result.

gotask-worker -A quickstart:app &      # in this folder
python quickstart.py
"""

from gotask import GoTask

app = GoTask()  # keeps jobs in a SQLite file of yours; GoTask("http://localhost:8080") would hand them to a server


@app.task(max_retries=5, retry_delay=2, timeout=30)
def word_count(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def main() -> None:
    job = word_count.delay("the quick brown fox jumps over the lazy dog")
    print(f"{job.id} is {job.state}")
    print(job.result(timeout=30))


if __name__ == "__main__":
    main()
