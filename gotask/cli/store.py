"""What the commands talk to: a storage, through the service, or a server, through the client. Both offer the same calls."""

import argparse
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from gotask import backends
from gotask.cli import flags
from gotask.errors import BackendDown, NotConfigured
from gotask.model import Worker
from gotask.settings import ClientSettings, is_embedded

if TYPE_CHECKING:
    from gotask.service import Service

PROBE: Final = "gotask.probe"  #: name of the record that is written and dropped to try a storage; no node is called so


def tried(url: str) -> str:
    """What the storage promises, once it has taken a write, since one that is full or read-only may well be read.

    Raises GotaskError with the reason.
    """
    backend = backends.open(url)
    try:
        probe = Worker(name=f"{PROBE}-{socket.gethostname()[:64]}-{os.getpid()}")
        backend.put(probe)
        backend.drop(Worker, probe.name)
        return backend.promise
    finally:
        backend.close()


def usable(url: str) -> str:
    """`tried`, before a program starts: a storage that takes no write is said once, and not by each process for ever."""
    try:
        return tried(url)
    except BackendDown as e:
        raise NotConfigured(str(e)) from e


def awaited(url: str) -> None:
    """`usable`, for a program that outlives an outage: a networked storage that is away is told of, and will be waited for."""
    try:
        usable(url)
    except NotConfigured as e:
        if is_embedded(url) or not isinstance(e.__cause__, BackendDown):
            raise
        logging.getLogger("gotask").warning("Starting all the same, and waiting for the storage: %s", e)


@contextmanager
def connected(args: argparse.Namespace) -> "Iterator[Service]":
    settings = flags.settings(ClientSettings, args)
    service = connect(settings)
    try:
        yield service
    finally:
        service.close()


def connect(settings: ClientSettings) -> "Service":
    # imported when used: a command that talks to a storage should not wait for an HTTP library to load, nor the other way
    if settings.url.startswith(("http://", "https://")):
        from gotask import client

        return cast("Service", client.open(settings.url, settings.api_key))
    from gotask.service import Service

    return Service(backends.open(settings.url))
