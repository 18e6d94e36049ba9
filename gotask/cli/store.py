"""What the commands talk to: a storage, through the service, or a server, through the client. Both offer the same calls."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from gotask import backends
from gotask.cli import flags
from gotask.errors import BackendDown
from gotask.settings import ClientSettings

if TYPE_CHECKING:
    from gotask.service import Service


def promise(url: str) -> str:
    """What the storage promises. Asked before a program starts, so that a wrong one is said once, and not by each process."""
    try:
        backend = backends.open(url)
    except BackendDown as e:
        return f"does not answer yet ({e})"
    try:
        return backend.promise
    finally:
        backend.close()


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
