"""Imports an app once before anything starts, in a child that is thrown away: user code stays out of the program that forks.

`python -m gotask.cli.appcheck ANSWER_FD package.module:app` is that child. It answers with JSON in a file, since what the
app prints is the app's own.
"""

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import msgspec.inspect
from msgspec import Meta, Struct

from gotask.cli import exits
from gotask.cli.supervisor import die_with, python
from gotask.errors import GotaskError, NotConfigured
from gotask.log import clean

FRAMES: Final = 3  #: lines of user code shown below the sentence, the innermost last
SAID_MOST: Final = 2000  #: characters of what a dying app printed that are shown
#: what stands for a value of a type in the command that a banner suggests
SAMPLES: Final[dict[type[msgspec.inspect.Type], Any]] = {
    msgspec.inspect.StrType: "text",
    msgspec.inspect.IntType: 1,
    msgspec.inspect.FloatType: 1.5,
    msgspec.inspect.BoolType: True,
    msgspec.inspect.AnyType: "text",
}


class Sample(Struct):
    """A job to try: a task of the app, its queue, and arguments that fit it."""

    type: str
    queue: str
    payload: dict[str, Any]


class Answer(Struct):
    """What the import came to. `error` is empty if it went well."""

    error: Annotated[str, Meta(max_length=20_000)] = ""
    frames: list[str] = []
    sample: Sample | None = None


def check(spec: str) -> Sample | None:
    """A job to try of the app, if it has one that is simple enough. Raises NotConfigured with what is wrong with the app."""
    answer_fd, said_fd = os.memfd_create("answer"), os.memfd_create("said")
    with open(answer_fd, "rb+") as answer, open(said_fd, "rb+") as said:
        parent = os.getpid()
        done = subprocess.run(
            python("gotask.cli.appcheck", str(answer_fd), spec),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(answer_fd,),
            preexec_fn=lambda: die_with(parent),
            check=False,
        )
        answer.seek(0)
        said.seek(0)
        told, words = answer.read(), said.read().decode(errors="replace")[-SAID_MOST:]
    if not told:
        tell(words.splitlines())
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
        raise NotConfigured(f"The app {spec!r} cannot be imported: its import ended the process {how}.")
    found = msgspec.json.decode(told, type=Answer)
    if found.error:
        tell(found.frames)
        raise NotConfigured(found.error)
    return found.sample


def tell(lines: list[str]) -> None:
    """What leads to the sentence that follows, on standard error."""
    for line in lines:
        print(f"  {clean(line)}", file=sys.stderr)


def answer_of(spec: str) -> Answer:
    from gotask.node.worker import load_tasks  # in the child alone: it loads what a node needs

    try:
        tasks = load_tasks(spec)
    except NotConfigured as error:
        cause = error.__cause__
        if cause is None:
            return Answer(str(error))
        return Answer(sentence(spec, cause), [describe(frame) for frame in frames(cause)[-FRAMES:]])
    except SystemExit as error:
        return Answer(f"The app {spec!r} cannot be imported: it ends the program{place(error)}.")
    return Answer(sample=next((made for task in tasks.values() if (made := sample(task))), None))


def sentence(spec: str, error: BaseException) -> str:
    module = spec.partition(":")[0]
    if isinstance(error, ModuleNotFoundError):
        if f"{module}.".startswith(f"{error.name}.") and not frames(error):
            return (
                f"There is no module {error.name!r} for -app {spec}: run this in the folder that holds it, or correct the name."
            )
        return f"The app {spec!r} cannot be imported: {error.name!r} is not installed, and is imported{place(error)}."
    if isinstance(error, GotaskError):
        return f"The app {spec!r} cannot be loaded{place(error)}: {error}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"The app {spec!r} cannot be imported: {type(error).__name__}{place(error)}: {' '.join(text.split())}."


def place(error: BaseException) -> str:
    """` at shop.py, line 3`: where the user's own code was last; empty if it had not begun."""
    found = frames(error)
    mine = [frame for frame in found if Path(frame.filename).is_relative_to(Path.cwd())] or found
    return f" at {short(mine[-1].filename)}, line {mine[-1].lineno}" if mine else ""


def frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The way to the error, without the machinery of imports and ours; for a syntax error its own place is the last."""
    ours = str(Path(__file__).parents[1])
    found = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", ours)) and f"{os.sep}importlib{os.sep}" not in frame.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:
        found.append(traceback.FrameSummary(error.filename, error.lineno, "<module>", line=error.text or ""))
    return found


def describe(frame: traceback.FrameSummary) -> str:
    return f"{short(frame.filename)}, line {frame.lineno}: {(frame.line or '').strip()}"


def short(path: str) -> str:
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def sample(task: Any) -> Sample | None:
    """A job of `task`, if its arguments are so plain that an example of each is obvious."""
    info: Any = msgspec.inspect.type_info(task.arguments)
    values = dict(samples(info.fields))
    wanted = [field.name for field in info.fields if field.required]
    return Sample(task.type, task.queue, values) if len(values) == len(wanted) else None


def samples(fields: Any) -> Iterator[tuple[str, Any]]:
    for field in fields:
        bounds = [value for name in getattr(field.type, "__struct_fields__", ()) if (value := getattr(field.type, name))]
        if field.required and type(field.type) in SAMPLES and not bounds:
            yield field.name, SAMPLES[type(field.type)]


def main() -> int:
    number, spec = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(number, False)
    with open(number, "wb") as sink:
        sink.write(msgspec.json.encode(answer_of(spec)))
    return exits.OK


def named(spec: str) -> None:
    """Raise NotConfigured unless `spec` has the form of a module and a variable in it."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", spec):
        raise NotConfigured(f"-app is {spec!r}; it takes module:variable, such as shop.tasks:app.")


if __name__ == "__main__":
    sys.exit(main())
