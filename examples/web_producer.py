"""A web server that enqueues and never waits: the answer is the job's id, asked for later.

gotask-worker -A web_producer:app &
python web_producer.py                 # then: curl 'localhost:8000/?to=a@example.com'
"""

from collections.abc import Callable, Iterable
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server

from gotask import GoTask, InvalidInput, NotFound

app = GoTask()
Start = Callable[[str, list[tuple[str, str]]], object]


@app.task(queue="mail", max_retries=5)
def welcome(to: str) -> str:
    return f"Welcome, {to}!"


def site(environ: dict[str, str], start: Start) -> Iterable[bytes]:
    query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    try:
        if "job" in query:
            job = app.job(query["job"])
            status, answer = "200 OK", f"{job.state} {job.progress:.0f} %"
        else:
            # the same address is welcomed once, however often the button is pressed
            job = welcome.options(unique_key=query.get("to", "nobody"), delay=1).enqueue(to=query.get("to", "nobody"))
            status, answer = "202 Accepted", f"/?job={job.id}"
    except NotFound as error:
        status, answer = "404 Not Found", str(error)
    except InvalidInput as error:
        status, answer = "422 Unprocessable Content", str(error)
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{answer}\n".encode()]


if __name__ == "__main__":
    with make_server("127.0.0.1", 8000, site) as server:
        server.serve_forever()
