"""What Redis or the network says, as one sentence that names what is wrong and what to do."""

import re
from typing import Final

from redis import exceptions as said
from redis.sentinel import MasterNotFoundError

from gotask.backends.redis.address import Address
from gotask.backends.redis.lines import Info, TooFewReplicas
from gotask.errors import BackendDown, NotConfigured

OLDEST: Final = (6, 2)  #: version of Redis
#: what a line raises
SAID: Final = (said.RedisError, said.RedisClusterException, TooFewReplicas, OSError)
POLICY: Final = "noeviction"  #: the only maxmemory-policy that never deletes a job
FULL_RETRY_S: Final = 5.0  #: seconds that a producer should wait when Redis is full, or cannot write its files
#: an answer, or the name of an error, that no trying again will change -> what is wrong in the URL
MISTAKES: Final = {
    "MovedError": "is one node of a Cluster: write the URL as redis+cluster://",
    "MOVED ": "is one node of a Cluster: write the URL as redis+cluster://",  # so too in redis-py 5
    "cluster support disabled": "is no Cluster: write the URL as redis://",
    "Cluster mode is not enabled": "is no Cluster: write the URL as redis://",  # in redis-py 5
    "DB index is out of range": "has no database of that number: write another, or raise 'databases' in redis.conf",
}
#: the word of an answer by which the first write of a script is refused, so that nothing was written -> why
REFUSALS: Final = {
    "OOM": "is full; raise its maxmemory, or wait until finished jobs are forgotten",
    "MISCONF": "cannot write its files, and takes no writes until it can; look at its log, and at the room on its disk",
    "READONLY": "is a replica, and takes no writes; a failover may be under way, so try again",
    "MASTERDOWN": "is a replica that has lost its master; a failover may be under way, so try again",
    "NOREPLICAS": "has fewer replicas in step than min-replicas-to-write, and takes no writes; a failover may be under way, so "
    "try again, or look at the replicas",
}
ELSEWHERE: Final = ("READONLY", "MASTERDOWN", "NOREPLICAS")  #: those that another server would not say
#: redis-py takes away the words that it has a class for, and a Redis before 7.0 puts its own before those of a script's command
WORDS: Final = {said.OutOfMemoryError: "OOM", said.ReadOnlyError: "READONLY", said.MasterDownError: "MASTERDOWN"}
WORD: Final = re.compile(rf"(?:^|-)({'|'.join(REFUSALS)}) ")


def version_of(info: Info) -> tuple[int, ...]:
    """Major and minor. Valkey names the Redis it is compatible with."""
    return tuple(int(part) for part in str(info.get("redis_version") or "0").split(".")[:2])


def judge(address: Address, info: Info) -> None:
    """Refuse a server that is too old, or may evict jobs. Raises ReadOnlyError for a replica, lest it seem to be well."""
    if version_of(info) < OLDEST:
        raise NotConfigured(
            f"Redis at {address.shown} has version {info.get('redis_version')}; GoTask needs Redis "
            f"{'.'.join(map(str, OLDEST))} or later, or Valkey."
        )
    policy = info.get("maxmemory_policy", POLICY)
    if policy != POLICY:
        raise NotConfigured(
            f"Redis at {address.shown} may delete jobs when its memory is full (maxmemory-policy {policy}); "
            f"set it to {POLICY}: redis-cli config set maxmemory-policy {POLICY}, and the same in redis.conf."
        )
    if info.get("role") == "slave":
        raise said.ReadOnlyError("its role is that of a replica")


def may_be_elsewhere(error: Exception) -> bool:
    """Whether another server may be in charge now, so that connections lead to the wrong one, or nowhere."""
    if _mistake(error) or isinstance(error, TooFewReplicas | said.AuthenticationError | said.AuthorizationError):
        return False
    word = _word(error)
    return word in ELSEWHERE if word else isinstance(error, said.ClusterDownError) or not isinstance(error, said.ResponseError)


def translated(address: Address, error: Exception) -> BackendDown | NotConfigured:
    """An error in a sentence."""
    at, text = f"Redis at {address.shown}", _text(error)
    if isinstance(error, TooFewReplicas):
        return BackendDown(
            f"Only {error} of {address.wait} replicas of {address.shown} had it in time, so the outcome is "
            "unknown; look at the replicas, and try again with the same id."
        )
    if mistake := _mistake(error):
        return NotConfigured(f"{at} {mistake}.")
    if isinstance(error, said.AuthenticationError | said.AuthorizationError | said.NoPermissionError):
        return BackendDown(f"{at} does not let us do this ({text}); look at the user, the password and the ACL.")
    if word := _word(error):
        return BackendDown(f"{at} {REFUSALS[word]}.", retry_after=1.0 if word in ELSEWHERE else FULL_RETRY_S, refused=True)
    if isinstance(error, said.ResponseError) and not isinstance(error, said.ClusterDownError):
        return BackendDown(f"{at} refused ({text}); the outcome is unknown, so try again with the same id.")
    if isinstance(error, MasterNotFoundError):
        return BackendDown(
            f"No Sentinel of {address.shown} says where the master is; look whether they run, at the name of the "
            "service, and at sentinel_password if they want one."
        )
    if isinstance(error, said.TimeoutError):
        return BackendDown(
            f"{at} did not answer within {address.timeout:g} s; the outcome is unknown, so try again with the same id."
        )
    return BackendDown(f"{at} cannot be reached ({text}); look whether it runs, and at its address.")


def in_part(error: BackendDown) -> BackendDown:
    """The same of a batch of which other jobs were accepted, or may have been."""
    sentence = f"{error} Other jobs of the batch may have been accepted: send it again with the same ids."
    return BackendDown(sentence, retry_after=error.retry_after, refused=error.refused)


def _text(error: Exception) -> str:
    """What was said, without the script's name and line, which Redis adds."""
    return str(error).partition(" script: ")[0].rstrip(".,")


def _mistake(error: Exception) -> str | None:
    text, name = str(error), type(error).__name__
    return next((advice for words, advice in MISTAKES.items() if words in text or words == name), None)


def _word(error: Exception) -> str | None:
    if not isinstance(error, said.ResponseError):
        return None
    found = WORD.search(str(error))
    return WORDS.get(type(error)) or (found[1] if found else None)
