"""A task: a function, the type of the jobs it runs, and the way between a job's JSON and the function's arguments.

The signature is the schema. Its type hints become a Struct that payloads are decoded into, and the code that unpacks the
Struct into a call is generated once, so that a job costs one decode and one plain call. What does not fit raises Misfit.
"""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from inspect import Parameter
from types import UnionType
from typing import Any, Generic, ParamSpec, TypedDict, TypeVar, Union, Unpack

import msgspec
import msgspec.inspect

from gotask import payload, sentences
from gotask.context import Context
from gotask.errors import InvalidInput, NotConfigured, TimeLimit, TooLarge
from gotask.model import NAME_PATTERN, NewJob, Rules

P = ParamSpec("P")
R = TypeVar("R")
Exceptions = tuple[type[BaseException], ...]


class TaskOptions(TypedDict, total=False):
    """What can be said of a task. What it leaves open is up to the job's queue, then to the defaults."""

    name: str  # the type of its jobs; the function's name if not given
    queue: str
    priority: int
    max_retries: int
    retry_strategy: str
    retry_delay: float | timedelta  # seconds, as all durations, or a timedelta
    max_retry_delay: float | timedelta
    retry_jitter: bool
    timeout: float | timedelta
    retry_on: Exceptions  # only these are retried; any exception if not given
    no_retry_on: Exceptions  # these are not


class Misfit(Exception):
    """The payload does not fit the task's arguments, or its result is not JSON. No retry can mend that."""


class Task(Generic[P, R]):
    """A function that runs the jobs of one type.

    `decode`, `call` and `encode_result` are a node's path, in this order; `bind` is a producer's.
    """

    def __init__(self, function: Callable[..., Any], **options: Unpack[TaskOptions]) -> None:
        self.function = function
        self.type: str = options.get("name") or str(getattr(function, "__name__", ""))
        self.queue = options.get("queue", "default")
        self.priority = options.get("priority", 1)
        self.rules = self._rules(options)
        retry_on = options.get("retry_on")
        self.retry_on = None if retry_on is None else tuple(retry_on)
        self.no_retry_on = tuple(options.get("no_retry_on", ()))
        self.is_async = inspect.iscoroutinefunction(function)
        signature = Signature(self.type, function)
        self.context_parameter = signature.context_parameter
        self.context_place = signature.context_place
        self.arguments = signature.arguments
        self.returns = signature.returns
        self._typed_result = _has_typed_keys(self.returns)
        #: payload -> arguments; Misfit if it does not fit
        self.decode: Callable[[bytes], Any] = _decoder(signature)
        #: (arguments, context) -> what the function returns; the context is None unless `context_parameter` is set
        self.call: Callable[[Any, Context | None], Any] = signature.caller(function)
        #: the function's arguments -> payload; InvalidInput if they do not fit
        self.bind: Callable[..., bytes] = _binder(signature, self.decode)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type}: {where(self.function)}>"

    def encode_result(self, value: object) -> bytes:
        """The function's value as JSON; Misfit if it cannot be."""
        if value is None:
            return payload.NULL
        try:
            return payload.encode(value, typed_keys=self._typed_result)
        except (InvalidInput, TooLarge) as error:
            raise Misfit(f"Task {self.type!r} returned what cannot be stored: {error}") from error

    def may_retry(self, error: BaseException) -> bool:
        """Whether a run that ended with `error` may be tried again: by default after anything but a Misfit."""
        if isinstance(error, (Misfit, *self.no_retry_on)):
            return False
        # a run that was killed at its limit is retried too, so one that stopped in time must not fare worse
        return self.retry_on is None or isinstance(error, (*self.retry_on, TimeLimit))

    def _rules(self, options: TaskOptions) -> Rules:
        if not re.match(NAME_PATTERN, self.type):
            raise InvalidInput(f"A task's name: {sentences.not_a_name(self.type)}; give it one with name=.")
        begin = f"Task {self.type!r}: "
        for option in options.keys() - TaskOptions.__annotations__.keys():
            raise InvalidInput(begin + sentences.unknown(option, TaskOptions.__annotations__, "option"))
        given = {"type": self.type, **sentences.seconds(options)}
        try:
            msgspec.convert({name: given[name] for name in ("type", "queue", "priority") if name in given}, NewJob)
            return msgspec.convert(given, Rules)  # takes its own and leaves the rest
        except msgspec.ValidationError as error:
            raise InvalidInput(begin + sentences.sentence(error, NewJob, given, "option")) from None


class Tasks(dict[str, Task[..., Any]]):
    """The tasks of an app by type. Two of one type are an error: which one runs would depend on import order."""

    def add(self, task: Task[..., Any]) -> None:
        known = self.get(task.type)
        if known is not None and where(known.function) != where(task.function):
            raise NotConfigured(
                f"Two tasks are called {task.type!r}: {where(known.function)} and {where(task.function)}; give one a name=."
            )
        self[task.type] = task

    @property
    def queues(self) -> list[str]:
        """The queues a node of these tasks serves unless told otherwise."""
        return sorted({"default", *(task.queue for task in self.values())})


class Signature:
    """A function's parameters, as a Struct and as generated code."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.parameters: list[Parameter] = []  # those that come from the payload, by name
        self.order: list[Parameter] = []  # all, as the function has them
        self.context_parameter: str | None = None
        self.context_place = 0  # its index among the arguments by position; past their end if it has to be named
        self.extra: Parameter | None = None  # **kwargs
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise NotConfigured(f"Task {name!r} is a generator, which would never run; return a list instead of yielding.")
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception as error:
            raise NotConfigured(
                f"Task {name!r}: an annotation of {where(function)} cannot be read ({error}); "
                "what it names must be defined at run time, before the task."
            ) from None
        self.returns: Any = hints.get("return", Any)
        for parameter in inspect.signature(function).parameters.values():
            self._take(parameter.replace(annotation=hints.get(parameter.name, Any)))
        self.arguments = self._struct()

    def _take(self, parameter: Parameter) -> None:
        if parameter.kind is Parameter.POSITIONAL_ONLY or parameter.kind is Parameter.VAR_POSITIONAL:
            what = f"*{parameter.name}" if parameter.kind is Parameter.VAR_POSITIONAL else f"{parameter.name} (positional only)"
            raise NotConfigured(f"Task {self.name!r} has the parameter {what}, but payloads have names; use a named parameter.")
        if _is_context(parameter.annotation):
            if self.context_parameter is not None:
                raise NotConfigured(f"Task {self.name!r} has two parameters annotated Context; keep one.")
            self.context_parameter = parameter.name
            self.context_place = len(self.order) if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD else sys.maxsize
        elif parameter.kind is Parameter.VAR_KEYWORD:
            self.extra = parameter
        else:
            self.parameters.append(parameter)
        self.order.append(parameter)

    def _struct(self) -> type[msgspec.Struct]:
        fields = [
            (p.name, p.annotation) if p.default is Parameter.empty else (p.name, p.annotation, _default(p.default))
            for p in self.parameters
        ]
        try:
            made = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, module=__name__)
            for kind in _kinds(msgspec.inspect.type_info(made)):
                if isinstance(kind, msgspec.inspect.CustomType):
                    raise TypeError(f"{kind.cls.__qualname__} has no form in JSON; use a dataclass or a msgspec.Struct")
            msgspec.json.Decoder(made)  # refuses some unions
        except (TypeError, ValueError, NameError) as error:
            raise NotConfigured(f"Task {self.name!r} has a parameter that JSON cannot become: {error}.") from None
        return made

    def caller(self, function: Callable[..., Any]) -> Callable[[Any, Context | None], Any]:
        """`lambda args, ctx: function(args.a, ctx, k=args.k)`: a call without a dict or a loop on the way."""
        struct = "args" if self.extra is None else "args[0]"
        parts = []
        for p in self.order:
            value = "ctx" if p.name == self.context_parameter else f"{struct}.{p.name}"
            if p is self.extra:
                parts.append("**args[1]")
            else:
                parts.append(value if p.kind is Parameter.POSITIONAL_OR_KEYWORD else f"{p.name}={value}")
        made: Callable[[Any, Context | None], Any]
        made = eval(f"lambda args, ctx: function({', '.join(parts)})", {"function": function, "__name__": __name__})
        return made

    def filler(self) -> Callable[..., dict[str, Any]]:
        """A function of the same parameters, without the context, that answers with a dict of those that were given."""
        unset = "_" + "".join(p.name for p in self.order)  # a name that is no parameter's
        given, heads, star = unset + "_", [], False
        lines = [f"{given} = {'dict(' + self.extra.name + ')' if self.extra else '{}'}"]
        for p in self.parameters:
            if p.kind is Parameter.KEYWORD_ONLY and not star:
                heads.append("*")
                star = True
            optional = p.default is not Parameter.empty
            heads.append(f"{p.name}={unset}" if optional else p.name)
            lines.append(f"if {p.name} is not {unset}: {given}[{p.name!r}] = {p.name}")
        if self.extra:
            heads.append(f"**{self.extra.name}")
        space: dict[str, Any] = {unset: object()}
        exec(f"def fill({', '.join(heads)}):\n " + "\n ".join([*lines, f"return {given}"]), space)
        fill: Callable[..., dict[str, Any]] = space["fill"]
        fill.__qualname__ = self.name  # Python's own complaints about arguments begin with it
        return fill


def _decoder(signature: Signature) -> Callable[[bytes], Any]:
    name, extra, arguments = signature.name, signature.extra, signature.arguments
    read: Callable[[bytes], Any]
    if extra is None:
        read = msgspec.json.Decoder(arguments).decode
    else:
        fields, hint = arguments.__struct_fields__, extra.annotation
        whole = msgspec.json.Decoder(dict[str, Any]).decode

        def split(raw: bytes) -> Any:
            given = whole(raw)
            known = {field: given.pop(field) for field in fields if field in given}
            extras = {key: _converted(key, value, hint) for key, value in given.items()}
            return msgspec.convert(known, arguments, str_keys=True), extras

        # nothing to pick out or convert: the whole object is the arguments
        read = split if fields or hint is not Any else lambda raw: (None, whole(raw))

    def decode(raw: bytes) -> Any:
        try:
            return read(raw)
        except (ValueError, RecursionError) as error:  # msgspec's own and UnicodeDecodeError are ValueErrors
            raise Misfit(f"Task {name!r} cannot take this payload: {sentences.sentence(error, arguments, raw)}") from None

    return decode


def _converted(key: str, value: Any, hint: Any) -> Any:
    try:
        return msgspec.convert(value, hint, str_keys=True)
    except msgspec.ValidationError as error:
        what, place = sentences.split(error)
        raise msgspec.ValidationError(f"{what} - at `$.{key}{place and '.' + place}`") from None


def _binder(signature: Signature, decode: Callable[[bytes], Any]) -> Callable[..., bytes]:
    name, fill = signature.name, signature.filler()
    typed = any(_has_typed_keys(p.annotation) for p in signature.order if p.name != signature.context_parameter)

    def bind(*args: Any, **kwargs: Any) -> bytes:
        try:
            raw = payload.encode(fill(*args, **kwargs), typed_keys=typed)
            decode(raw)  # what the worker will do: nothing is enqueued that cannot be run
        except (TypeError, Misfit, InvalidInput) as error:
            text = str(error) if isinstance(error, Misfit) else f"Task {name!r} cannot take these arguments: {error}"
            raise InvalidInput(text if text.endswith((".", "?")) else text + ".") from None
        return raw

    return bind


def _is_context(hint: Any) -> bool:
    return hint is Context or (typing.get_origin(hint) in (Union, UnionType) and Context in typing.get_args(hint))


def _default(value: Any) -> Any:
    """A default as msgspec takes it. It refuses mutable ones, where Python hands the same object to every call."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, Enum)):
        return value
    return msgspec.field(default_factory=lambda: value)


def _kinds(kind: Any) -> Iterator[msgspec.inspect.Type]:
    """A parameter's type and what it is made of, short of the inside of other Structs and dataclasses."""
    yield kind
    for name in kind.__struct_fields__:
        inner = getattr(kind, name)
        for part in inner if isinstance(inner, tuple) else (inner,):
            if isinstance(part, msgspec.inspect.Field):
                part = part.type
            if isinstance(part, msgspec.inspect.Type) and not isinstance(part, msgspec.inspect.StructType):
                yield from _kinds(part)


def _has_typed_keys(hint: Any) -> bool:
    """Whether a reader with this hint turns the string keys of JSON back into what they were."""
    if hint is Any:
        return False
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping) and inside[0] not in (str, Any):
        return True
    return hasattr(hint, "__annotations__") or any(_has_typed_keys(part) for part in inside)


def where(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
