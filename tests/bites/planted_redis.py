"""The bugs of the Redis storage that its own tests must notice."""

from tests.bites.planted import Bite

BITES = [
    Bite(
        "redis: a server that may evict jobs is not refused",
        "gotask/backends/redis/server.py",
        "if policy != POLICY:",
        "if not policy:",
        "tests/conformance/test_redis_refusals.py -k evict",
    ),
    Bite(
        "redis: a server that is too old is not refused",
        "gotask/backends/redis/server.py",
        "        if version_of(info) < OLDEST:",
        "        if version_of(info) < (0, 0):",
        "tests/conformance/test_redis_refusals.py -k old",
    ),
    Bite(
        "redis: permits of jobs whose node died are kept for ever",
        "gotask/backends/redis/lease.lua",
        "    call('ZREMRANGEBYSCORE', root .. ':permits:' .. queue, '-inf', now_text) -- of jobs whose node died\n",
        "",
        "tests/conformance/test_redis_keys.py -k limit",
    ),
    Bite(
        "redis: what has ended leaves its claim",
        "gotask/backends/redis/__init__.py",
        "            self._claims.sweep()\n",
        "            pass\n",
        "tests/conformance/test_redis_keys.py -k nothing_is_left",
    ),
    Bite(
        "redis: the body of a forgotten job stays",
        "gotask/backends/redis/tick.lua",
        "  call('XDEL', LOG, job.seq .. '-0')\n",
        "",
        "tests/conformance/test_redis_keys.py -k nothing_is_left",
    ),
    Bite(
        "redis: each end is told, though nobody waits",
        "gotask/backends/redis/redis.lua",
        "if call('ZREM', root .. ':waited', id) == 1 then",
        "if call('ZREM', root .. ':waited', id) >= 0 then",
        "tests/conformance/test_redis_keys.py tests/conformance/test_redis.py -k nobody_waits",
    ),
    Bite(
        "redis: the script makes a global",
        "gotask/backends/redis/look.lua",
        "if verb == 'counts' then return",
        "if verb == 'counts' then counted_at = now return",
        "tests/conformance/test_redis_script.py -k globals",
    ),
    Bite(
        "redis: a store may be opened with another number of shards",
        "gotask/backends/redis/server.py",
        "            if stored != self.address.shards:",
        "            if stored < 0:",
        "tests/conformance/test_redis_keys.py -k shards_is_for_life",
    ),
    Bite(
        "redis: a command that the documented user may not call",
        "gotask/backends/redis/look.lua",
        "if verb == 'counts' then return",
        "if verb == 'counts' then call('DBSIZE') return",
        "tests/conformance/test_redis_acl.py -k rights",
    ),
    Bite(
        "redis: a forked child talks on its parent's connections",
        "gotask/backends/redis/lines.py",
        "            self._free, self._process = [], os.getpid()\n",
        "            pass\n",
        "tests/conformance/test_redis.py -k forked",
    ),
    Bite(
        "a password of a Sentinel is logged",
        "gotask/log.py",
        "[?&;](?:\\w+_)?(?:password",
        "[?&;](?:password",
        "tests/unit/test_config.py -k passwords",
    ),
]
