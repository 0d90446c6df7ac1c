-- KEYS stream, replay stream, turns, row of the group, retries, crashes, dead letters; ARGV group, consumer, turns per
-- key, turns of the group, 1 or 2 for the replay stream, the message's name, `skip` or `halt`, the field of its key or '',
-- then the letter's names and values.
-- Writes the dead letter, then settles the message. With `halt` the message's place stays, its key stops, and the letter
-- has the key as `halts`; not where a copy dies while its message is in the row, without which nothing later runs.
-- Does nothing for a message that is no longer pending. Gives {number of acked messages, what was taken over}.
-- include: call turns
local at = tonumber(ARGV[5])
local member, _, entry, own = member_of(ARGV[6])
local pending = redis.pcall('XPENDING', KEYS[at], ARGV[1], entry, entry, 1)
if pending.err and not is_missing(pending) then
  return pending
elseif pending.err or #pending == 0 then
  return {0, taken}
end
local row = ARGV[8] ~= '' and opened(ARGV[8])
local halts = ARGV[7] == 'halt' and row and (at == 1 or not redis.call('ZSCORE', row, own))
local words = {'XADD', KEYS[7], '*', ARGV[9], ARGV[10]}
if halts then
  words[6], words[7] = 'halts', string.sub(ARGV[8], 2)
end
for number = 11, #ARGV do
  words[#words + 1] = ARGV[number]
end
call(words)
local acked = redis.call('XACK', KEYS[at], ARGV[1], entry)
redis.call('HDEL', KEYS[5], entry)
redis.call('HDEL', KEYS[6], entry)
if at == 2 then
  redis.call('XDEL', KEYS[2], entry)
end
leave(member, row)
if halts then
  redis.call('ZADD', row, HALTED, own)
end
give_all(row and {[ARGV[8]] = true} or {})
return {acked, taken}
