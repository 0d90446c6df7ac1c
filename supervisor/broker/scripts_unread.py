"""The Lua script for an entry that no reply can carry: it becomes a dead letter without leaving the server."""

from __future__ import annotations

from supervisor.broker.scripts import Script
from supervisor.core.copies import ORIGIN, ORIGIN_OF_JSON

#: KEYS stream, retries, crashes, dead[, copies]; ARGV group, consumer, id, the least bytes for which it is to be done,
#: the most fields that a letter can take, the prefix of their names, then the letter's names and values, `id` first.
#: With `copies`, the same key as `stream`, the entry may be a copy: the letter is its message's, and it is removed.
#: Gives the entry's bytes and its message's id, or nothing when nothing was done. What has too many fields is still in
#: the stream.
DEAD_LETTER_UNREADABLE = Script(
    f"""
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
if #pending == 0 or #found == 0 then
  return false
end
local flat, bytes, letter, first, prefix = found[1][2], 0, {{unpack(ARGV, 7)}}, 1, ARGV[6]
if KEYS[5] and (flat[1] == '{ORIGIN}' or flat[1] == '{ORIGIN_OF_JSON}') then
  letter[2], first = flat[2], 3
  prefix = flat[1] == '{ORIGIN}' and prefix or ''
end
for at = first, #flat do
  bytes = bytes + #flat[at]
  if #flat - first < 2 * tonumber(ARGV[5]) then
    letter[#letter + 1] = at % 2 == 1 and prefix .. flat[at] or flat[at]
  end
end
if bytes < tonumber(ARGV[4]) then
  return false
end
redis.call('XADD', KEYS[4], '*', unpack(letter))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[3])
if KEYS[5] then
  redis.call('XDEL', KEYS[5], ARGV[3])
end
return {{bytes, letter[2]}}
"""
)
