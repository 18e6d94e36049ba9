"""Where the value of a setting comes from: a flag, else a GOTASK_* variable, else gotask.toml, else its default.

The file is `gotask.toml` in the current folder, or the one named by `--config` or GOTASK_CONFIG. An unknown key is an error,
since a setting that is silently ignored is the worst kind. The settings themselves are in gotask.settings.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_origin

import msgspec

from gotask.errors import InvalidInput
from gotask.settings import (
    KINDS,
    PREFIX,
    ClientSettings,
    ServerSettings,
    Setting,
    Settings,
    WorkerSettings,
    settings_of,
)

__all__ = ["ClientSettings", "ServerSettings", "Settings", "WorkerSettings", "did_you_mean", "load"]

FILE: Final = "gotask.toml"
#: GOTASK_* variables that are read elsewhere, and what for
ELSEWHERE: Final[dict[str, str]] = {
    "GOTASK_CONFIG": "path of the configuration file, like `--config`",
    "GOTASK_STATE_DIR": "folder of the SQLite files, instead of `$XDG_STATE_HOME/gotask` (`~/.local/state/gotask`)",
    "GOTASK_SMTP_URL": "mail server of the example task `email`, such as smtp://localhost:25",
    "GOTASK_SANITIZE": "builds the extension with a sanitizer: `address` or `undefined`",
    "GOTASK_ANNOTATE": "1 writes Cython's annotated source when building",
}
#: what Kubernetes puts into each pod for a Service whose name begins with "gotask"
KUBERNETES: Final = re.compile(r"^GOTASK_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_\d+_[A-Z]+(_[A-Z]+)?)$")
UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

S = TypeVar("S", bound=Settings)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "", otherwise: str = ".") -> str:
    """The end of a sentence about an unknown word. What all words share in front makes none of them likelier."""
    rests = [one.removeprefix(prefix) for one in known]
    close = difflib.get_close_matches(word.removeprefix(prefix), rests, n=1, cutoff=0.75 if prefix else 0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else otherwise


def parse(setting: Setting, value: Any, where: str) -> Any:
    """A flag's, a variable's or a file's value as the setting's type; `where` names it in the error."""
    given = value
    try:
        if isinstance(value, str):
            if setting.extra.get("auto") and value.lower() == "auto":
                value = 0
            elif "unit" in setting.extra:
                value = size(value)
            elif get_origin(setting.plain) is tuple:
                value = [part.strip() for part in re.split(r"[,\n]", value) if part.strip()]
            elif get_origin(setting.plain) is Literal:
                value = value.lower()
        return msgspec.convert(value, setting.type, strict=not isinstance(given, str))
    except (msgspec.ValidationError, ValueError):
        shown = "not usable" if setting.secret else repr(given)
        raise InvalidInput(f"{where} is {shown}; it takes {setting.expected()}.") from None


def size(text: str) -> int:
    """Bytes from a number with an optional K, M, G or T (powers of 1024)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    return int(float(found[1]) * UNITS[found[2].upper()])


def load(kind: type[S], flags: Mapping[str, str | None] | None = None, environ: Mapping[str, str] | None = None) -> S:
    """The settings of one program. `flags` are those given, by setting name, as typed; names of other programs are passed over.

    Raises InvalidInput with one sentence that names the setting, where it was given and what it takes.
    """
    flags = {name: text for name, text in (flags or {}).items() if text is not None}
    environ = os.environ if environ is None else environ
    known = settings_of(kind)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    sources = (
        from_file(kind, flags.get("config") or environ.get("GOTASK_CONFIG") or None),
        from_environment(environ),
        {name: (f"flag {known[name].flag}", known[name].flag, text) for name, text in flags.items() if name in known},
    )
    for source in sources:
        for name, (origin, where, value) in source.items():
            if name in known:
                values[name], origins[name] = parse(known[name], value, where), origin
    settings = kind(**values, origins=origins)
    settings.check()
    return settings


Given = dict[str, tuple[str, str, Any]]  #: setting -> origin, the name to use in an error, the value


def from_environment(environ: Mapping[str, str]) -> Given:
    """The GOTASK_* variables; an empty one is as good as none. GOTASK_..._FILE is the path of a file that holds a secret."""
    every = {s.variable: s for kind in KINDS for s in settings_of(kind).values()}
    files = {f"{variable}_FILE": s for variable, s in every.items() if s.secret}
    found: Given = {}
    for variable, text in environ.items():
        if not text:
            continue
        if setting := every.get(variable):
            found[setting.name] = (f"environment {variable}", variable, text)
        elif setting := files.get(variable):
            try:
                found[setting.name] = (f"file {text}", variable, Path(text).read_text().strip())
            except OSError as e:
                raise InvalidInput(f"{variable} names {text}, which cannot be read: {e.strerror}.") from None
        elif variable.startswith(PREFIX) and not foreign(variable, text):
            hint = did_you_mean(variable, [*every, *files, *ELSEWHERE], PREFIX, "; unset it, or see `gotask up --help`.")
            raise InvalidInput(f"There is no setting {variable}{hint}")
    return found


def foreign(variable: str, text: str) -> bool:
    return variable in ELSEWHERE or bool(KUBERNETES.match(variable)) or (variable.endswith("_PORT") and "://" in text)


def from_file(kind: type[Settings], path: str | None) -> Given:
    """gotask.toml: settings at the top hold for every program, those in [server], [worker] and [client] for that one."""
    name = path or FILE
    if path is None and not Path(name).exists():
        return {}
    try:
        text = Path(name).read_text()
    except OSError as e:
        raise InvalidInput(f"The configuration file {name} cannot be read: {e.strerror}.") from None
    try:
        table = tomllib.loads(text)
    except ValueError as e:
        raise InvalidInput(f"{name} is not valid TOML: {e}.") from None
    every = {key for one in KINDS for key in settings_of(one)}
    sections = {one.SECTION: settings_of(one) for one in KINDS}
    found: Given = {}
    for key, value in table.items():
        if key in sections and isinstance(value, dict):
            for inner in value:
                if inner not in sections[key]:
                    raise InvalidInput(f"{name} has an unknown key {key}.{inner}{did_you_mean(inner, sections[key])}")
        elif key not in every:
            raise InvalidInput(f"{name} has an unknown key {key}{did_you_mean(key, [*every, *sections])}")
        else:
            found[key] = (name, f"{key} in {name}", value)
    own = table.get(kind.SECTION, {})
    return found | {key: (name, f"{kind.SECTION}.{key} in {name}", value) for key, value in own.items()}
