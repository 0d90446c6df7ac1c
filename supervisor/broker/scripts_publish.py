"""The Lua script of a publish that carries a key: stored once, however often it is sent.

XADD comes first: out of memory, read only or another type at the stream's key then stop the script
before anything was written.
"""

from __future__ import annotations

from supervisor.broker.scripts import Script

#: KEYS idempotency, stream; ARGV fingerprint, time to live in s, then per message the number of its
#: names and values, and these. Gives {status, id...}: 0 stored now, 1 stored before, 2 the key is
#: another payload's. The key holds `<fingerprint> <id> <id>...`.
PUBLISH_ONCE = Script(
    """
local held = redis.call('GET', KEYS[1])
if held then
  local found = {}
  for word in string.gmatch(held, '%S+') do
    found[#found + 1] = word
  end
  local status = found[1] == ARGV[1] and 1 or 2
  found[1] = status
  return status == 1 and found or {2}
end
local reply, ids, at = {0}, {ARGV[1]}, 3
while at <= #ARGV do
  local values = tonumber(ARGV[at])
  local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 1, at + values))
  reply[#reply + 1] = id
  ids[#ids + 1] = id
  at = at + values + 1
end
redis.call('SET', KEYS[1], table.concat(ids, ' '), 'EX', ARGV[2])
return reply
"""
)
