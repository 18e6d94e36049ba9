"""A long task that says how far it is, stops when asked to, and tries again when told to.

gotask-worker -A progress:app &
python progress.py
"""

import time

from gotask import Cancel, Context, GoTask, Retry

app = GoTask()


@app.task(timeout=120)
def transcode(ctx: Context, path: str, frames: int = 100) -> str:
    """`ctx` is filled in by the worker; callers leave it out."""
    if not path.endswith(".mov"):
        raise Cancel(f"{path} is no film")
    if ctx.attempt == 1 and frames > 1000:
        raise Retry(60, "the machine is busy; in a minute, then")
    for frame in range(frames):
        if ctx.cancelled:
            raise Cancel("stopped on request")
        time.sleep(0.05)
        ctx.progress(100 * frame / frames, f"frame {frame}")
    return path.replace(".mov", ".mp4")


def main() -> None:
    job = transcode.delay("holiday.mov")
    while not job.wait(timeout=0.5):
        print(f"{job.progress:3.0f} % {job.progress_note or ''}")
    print(job.result())


if __name__ == "__main__":
    main()
