"""How a command ends: an exit code with a meaning, one sentence for an error, and never a traceback for Ctrl-C or `| head`."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from gotask.errors import GotaskError, InvalidInput, NotConfigured, ResultTimeout
from gotask.log import clean, scrub

OK: Final = 0
FAILED: Final = 1  #: not found, refused, or a job that ended without success
USAGE: Final = 2  #: a flag, a variable or a file is wrong: trying again changes nothing
TIMEOUT: Final = 3  #: not finished in the time given
CONFIG: Final = 78  #: EX_CONFIG of sysexits.h: how a node says USAGE to the command that started it; users never see it
INTERRUPTED: Final = 128 + signal.SIGINT
PIPE_CLOSED: Final = 128 + signal.SIGPIPE

DOC: Final = "exit codes: 0 done, 1 failed or not found, 2 wrong usage or configuration, 3 timed out"


def say(sentence: object) -> None:
    """One line for people, on standard error, in the name of the command they typed."""
    program = os.path.basename(sys.argv[0]).removesuffix(".py")
    name = {"server": "gotask-server", "worker": "gotask-worker"}.get(
        program, program or "gotask"
    )  # `python -m` has the short one
    print(f"{name}: {clean(scrub(str(sentence)))}", file=sys.stderr)


class Unwritten(GotaskError):
    """The output could not be written."""


@contextmanager
def writing() -> Iterator[None]:
    """Around all that writes to standard output: a full disk, or an output that was closed, is one sentence."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise Unwritten(f"The output could not be written ({e.strerror}): send it to a place that takes it.") from None


def open_streams() -> None:
    """Replace standard streams that were closed: else the next file that is opened would take the place of one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # a write to an output that is open for reading fails with EBADF, as one to a closed descriptor does
            found = os.open(os.devnull, os.O_RDWR if name == "stderr" else os.O_RDONLY)
            setattr(sys, name, open(found, "w" if number else "r", closefd=False))  # noqa: SIM115 - for the whole program


def guard(main: Callable[[], int]) -> int:
    """Run a command and turn whatever ends it into an exit code."""
    open_streams()
    try:
        try:
            code = main()
        except SystemExit as e:  # argparse, after --help or an error
            code = e.code if isinstance(e.code, int) else OK if e.code is None else FAILED
        with writing():
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return PIPE_CLOSED
    except Unwritten as e:
        discard_output()
        return failed(e, FAILED)
    except (InvalidInput, NotConfigured) as e:
        return failed(e, USAGE)
    except ResultTimeout as e:
        return failed(e, TIMEOUT)
    except GotaskError as e:
        return failed(e, FAILED)
    except Exception as e:
        if debugging():
            raise
        return failed(f"Something went wrong inside GoTask ({type(e).__name__}: {e}); add -l debug to see where.", FAILED)


def discard_output() -> None:
    """Nobody takes the output any more; Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def debugging() -> bool:
    return os.environ.get("GOTASK_LOG_LEVEL") == "debug" or any(word.endswith("debug") for word in sys.argv[1:])


def failed(sentence: object, code: int) -> int:
    say(sentence)
    return code
