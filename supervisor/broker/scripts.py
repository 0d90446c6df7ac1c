"""The Lua scripts of settling and housekeeping: what must be atomic, is here.

The order in each is create first, remove last: a script that stops half way then leaves a message
pending, never lost (an error in MULTI would not stop the XACK behind it).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest to call it by."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute what EVALSHA wants."""
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


#: KEYS stream, retries, crashes[, copies]; ARGV group, id... Acks messages that had failed before; with `copies`, the
#: same key as `stream`, the entries are removed as well.
ACK_RETRIED = Script(
    """
local acked = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
redis.call('HDEL', KEYS[2], unpack(ARGV, 2))
redis.call('HDEL', KEYS[3], unpack(ARGV, 2))
if KEYS[4] then
  redis.call('XDEL', KEYS[4], unpack(ARGV, 2))
end
return acked
"""
)

#: KEYS stream, retries; ARGV group, id, record. Writes nothing for a message that is settled already: the
#: command may come late, when it had to be repeated, and its group may be gone by then.
RETRY_LATER = Script(
    """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then
  return pending
end
if #pending == 0 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
"""
)

#: KEYS stream, retries, crashes, dead[, copies]; ARGV group, id, then the dead letter's names and values. With
#: `copies`, the same key as `stream`, the entry is removed as well.
#: Writes nothing when the message is no longer pending: somebody else has settled it, or its group is gone.
DEAD_LETTER = Script(
    """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then
  return pending
end
if #pending == 0 then
  return false
end
local id = redis.call('XADD', KEYS[4], '*', unpack(ARGV, 3))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
if KEYS[5] then
  redis.call('XDEL', KEYS[5], ARGV[2])
end
return id
"""
)

#: KEYS stream. The server's clock, Unix ms.
NOW = Script(
    """
local time = redis.call('TIME')
return time[1] * 1000 + math.floor(time[2] / 1000)
"""
)

#: KEYS stream; ARGV group, consumer, heir, count, least idle ms, since when (`NOW`; 0: not known) the owner is gone.
#: Hands the first messages of the consumer to the heir and counts no delivery; gives {found, handed over}. Look and
#: claim are one step, so whoever else does the same never takes what has changed hands already. What the consumer got
#: after its owner was found to be gone stays: the owner is back.
TAKE_OVER = Script(
    """
local idle_ms, since_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
if since_ms > 0 then
  local time = redis.call('TIME')
  idle_ms = math.max(idle_ms, time[1] * 1000 + math.floor(time[2] / 1000) - since_ms + 1)
end
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', idle_ms, '-', '+', ARGV[4], ARGV[2])
if #rows == 0 then
  return {0, 0}
end
local ids = {}
for at, row in ipairs(rows) do
  ids[at] = row[1]
end
local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], idle_ms, unpack(ids)}
claim[#claim + 1] = 'JUSTID'
return {#rows, #redis.call(unpack(claim))}
"""
)

#: KEYS stream; ARGV group, consumer, and for one that may be alive its least idle ms. -1: it holds pending messages
#: and stays; -2: it was active lately and stays.
DELETE_CONSUMER = Script(
    """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if #pending > 0 then
  return -1
end
for _, flat in ipairs(ARGV[3] and redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]) or {}) do
  local consumer = {}
  for at = 1, #flat, 2 do
    consumer[flat[at]] = flat[at + 1]
  end
  if consumer.name == ARGV[2] and consumer.idle < tonumber(ARGV[3]) then
    return -2
  end
end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
"""
)

#: KEYS lease; ARGV token, ttl ms. 1: ours (again), 0: somebody else's.
TAKE_LEASE = Script(
    """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

#: KEYS lease; ARGV token. Gives the lease back, if it is ours.
DROP_LEASE = Script(
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""
)
