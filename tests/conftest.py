"""What every part of the tests may ask for."""

from tests.servers.fixtures import servers, start_postgres, start_proxy, start_redis

__all__ = ["servers", "start_postgres", "start_proxy", "start_redis"]
