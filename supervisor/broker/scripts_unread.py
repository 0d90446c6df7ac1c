"""The Lua script for an entry that no reply can carry: it becomes a dead letter without leaving the server."""

from __future__ import annotations

from supervisor.broker.scripts import Script

#: KEYS stream, retries, crashes, dead; ARGV group, consumer, id, the least bytes for which it is to be done, the most
#: fields that a letter can take, the prefix of their names, then the letter's names and values.
#: Gives the entry's bytes; 0: nothing was done. What has too many fields is still in the stream.
BURY_UNREAD = Script(
    """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
if #pending == 0 or #found == 0 then
  return 0
end
local flat, bytes, letter = found[1][2], 0, {unpack(ARGV, 7)}
for at = 1, #flat do
  bytes = bytes + #flat[at]
  if #flat <= 2 * tonumber(ARGV[5]) then
    letter[#letter + 1] = at % 2 == 1 and ARGV[6] .. flat[at] or flat[at]
  end
end
if bytes < tonumber(ARGV[4]) then
  return 0
end
redis.call('XADD', KEYS[4], '*', unpack(letter))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[3])
return bytes
"""
)
