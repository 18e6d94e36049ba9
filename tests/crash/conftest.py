from tests.servers.storages import backend, storage

__all__ = ["backend", "storage"]
