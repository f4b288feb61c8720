"""Tracks what commands leave behind in a session of Redis; needs no driver."""

from dataclasses import dataclass, replace
from enum import Enum

# Commands that leave no trace in the session. Any other command, even an unknown one, requires a reset.
HARMLESS = frozenset(
    """
    ACL APPEND BGREWRITEAOF BGSAVE BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH
    BZMPOP BZPOPMAX BZPOPMIN CLUSTER COMMAND CONFIG COPY DBSIZE DECR DECRBY DEL DELEX DIGEST DUMP ECHO EVAL EVALSHA
    EVALSHA_RO EVAL_RO EXISTS EXPIRE EXPIREAT EXPIRETIME FCALL FCALL_RO FLUSHALL FLUSHDB FUNCTION GEOADD GEODIST
    GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE GET GETBIT
    GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY
    HINCRBYFLOAT HKEYS HLEN HMGET HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX
    HSETNX HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT INFO KEYS LASTSAVE LATENCY LCS LINDEX LINSERT LLEN LMOVE LMPOP
    LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MEMORY MGET MIGRATE MODULE MOVE MSET MSETEX MSETNX OBJECT PERSIST
    PEXPIRE PEXPIREAT PEXPIRETIME PFADD PFCOUNT PFMERGE PING PSETEX PTTL PUBLISH PUBSUB RANDOMKEY RENAME RENAMENX
    RESTORE ROLE RPOP RPOPLPUSH RPUSH RPUSHX SADD SAVE SCAN SCARD SDIFF SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE
    SINTER SINTERCARD SINTERSTORE SISMEMBER SLOWLOG SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SPUBLISH SRANDMEMBER
    SREM SSCAN STRLEN SUBSTR SUNION SUNIONSTORE SWAPDB TIME TOUCH TTL TYPE UNLINK VADD VCARD VDIM VEMB VGETATTR VINFO
    VISMEMBER VLINKS VRANDMEMBER VRANGE VREM VSETATTR VSIM WAIT WAITAOF XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX
    XGROUP XINFO XLEN XPENDING XRANGE XREAD XREADGROUP XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE
    ZINCRBY ZINTER ZINTERCARD ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX
    ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION ZUNIONSTORE
    """.split()  # noqa: SIM905 - a list of this many strings is no easier to read
) | frozenset(
    f"{word} {part}"
    for word, parts in {
        "CLIENT": "GETNAME GETREDIR ID INFO KILL LIST PAUSE TRACKINGINFO UNBLOCK UNPAUSE",
        "SCRIPT": "EXISTS FLUSH KILL LOAD",
    }.items()
    for part in parts.split()
)
HARMLESS_MODULES = ("BF.", "CF.", "CMS.", "FT.", "JSON.", "TDIGEST.", "TOPK.", "TS.")

# RESET does not undo everything that these leave behind, as SCRIPT DEBUG or, in Redis 7.0, CLIENT NO-EVICT.
LASTING = ("CLIENT", "HIMPORT", "PSYNC", "REPLCONF", "SCRIPT", "SYNC")
NOT_LASTING = ("CLIENT CACHING", "CLIENT REPLY", "CLIENT SETNAME", "CLIENT TRACKING")


class Transaction(Enum):
    NONE = "none"
    WATCHED = "WATCH was sent"
    OPEN = "MULTI was sent"


TRANSACTIONS = {
    "WATCH": Transaction.WATCHED,
    "UNWATCH": Transaction.NONE,
    "MULTI": Transaction.OPEN,
    "EXEC": Transaction.NONE,
    "DISCARD": Transaction.NONE,
}


class Traces(Enum):
    NONE = "none"
    SOME = "what RESET undoes"
    LASTING = "what it does not"


@dataclass(frozen=True)
class Session:
    """How commands have changed a session since connecting.

    Attributes:
        traces: What commands have left behind, apart from transactions.
        transaction: Whether a transaction is prepared by WATCH, or open.
    """

    traces: Traces = Traces.NONE
    transaction: Transaction = Transaction.NONE

    @property
    def is_new(self) -> bool:
        """Whether the session is as after connecting."""
        return self.traces is Traces.NONE and self.transaction is Transaction.NONE

    def after(self, *words: object) -> "Session":
        """Return the session after a command, given at least its first two words."""
        # "CLIENT SETNAME" is one word or two.
        name, *rest = (
            " ".join(word.decode("latin-1") if isinstance(word, bytes) else str(word) for word in words).upper().split()
        )
        if name in TRANSACTIONS:
            if self.transaction is Transaction.OPEN and name in {"WATCH", "UNWATCH"}:  # refused or queued
                return self
            return replace(self, transaction=TRANSACTIONS[name])
        both = " ".join((name, *rest[:1]))
        if name in HARMLESS or both in HARMLESS or name.startswith(HARMLESS_MODULES):
            return self
        is_lasting = self.traces is Traces.LASTING or (name in LASTING and both not in NOT_LASTING)
        return replace(self, traces=Traces.LASTING if is_lasting else Traces.SOME)


NEW = Session()
