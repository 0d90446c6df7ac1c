-- KEYS stream, retries, crashes, dead letters[, replay stream]; ARGV group, consumer, id, least bytes, then the letter's
-- names and values, `id` first. ORIGIN, FIELD_PREFIX: see broker/scripts.py.
-- Makes a dead letter of an entry that no reply can carry, without reading it to the client. An entry of the replay
-- stream may be a copy: the letter is then its message's. Does nothing unless the entry is pending, stored, and of the
-- least size. Gives {bytes, id of the message}, or nil.
-- include: settle call
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
if #pending == 0 or #found == 0 then
  return false
end
local flat, first, bytes = found[1][2], 1, 0
local words = {'XADD', KEYS[4], '*', unpack(ARGV, 5)}
if KEYS[5] and flat[1] == ORIGIN then
  words[5], first = flat[2], 3
end
for at = first, #flat, 2 do
  bytes = bytes + #flat[at] + #flat[at + 1]
  words[#words + 1] = FIELD_PREFIX .. flat[at]
  words[#words + 1] = flat[at + 1]
end
if bytes < tonumber(ARGV[4]) then
  return false
end
call(words)
settle(ARGV[1], KEYS[5], ARGV[3])
return {bytes, words[5]}
