"""How a command ends: an exit code with a meaning, one sentence for an error, and never a traceback for Ctrl-C or `| head`."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from gotask.errors import GotaskError, InvalidInput, NotConfigured, ResultTimeout
from gotask.log import clean, scrub

OK: Final = 0
FAILED: Final = 1  #: not found, refused, or a job that ended without success
USAGE: Final = 2  #: a flag, a variable or a file is wrong: trying again changes nothing
TIMEOUT: Final = 3  #: not finished in the time given
CONFIG: Final = 78  #: EX_CONFIG of sysexits.h; some programs say USAGE so
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


def guard(main: Callable[[], int]) -> int:
    """Run a command and turn whatever ends it into an exit code."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
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


def debugging() -> bool:
    return os.environ.get("GOTASK_LOG_LEVEL") == "debug" or any(word.endswith("debug") for word in sys.argv[1:])


def failed(sentence: object, code: int) -> int:
    say(sentence)
    return code


def leave(sentence: object, code: int = USAGE) -> NoReturn:
    say(sentence)
    raise SystemExit(code)
