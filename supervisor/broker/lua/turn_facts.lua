-- KEYS stream, replay stream, turns, row of the group; ARGV group, the message's name, the field of its key or ''.
-- Gives {number of messages that wait before it, then of each that has a turn: its id, its consumer or ''}: in the row of
-- its key, or of the group when it has the turn of its key. Of a dead letter that stops the key, the consumer is `halted`.
-- include: turns
local member, row = member_of(ARGV[2]), KEYS[4] .. ARGV[3]
if tonumber(redis.call('ZSCORE', row, member) or -1) < 0 then
  row = KEYS[4]
end
local rank = redis.call('ZRANK', row, member) or 0
local found = {math.max(0, rank - redis.call('ZCOUNT', row, '-inf', '(0'))}
local holders = redis.call('ZRANGEBYSCORE', row, '-inf', '(0', 'WITHSCORES', 'LIMIT', 0, 10)
for number = 1, #holders, 2 do
  local at, entry = entry_of(holders[number])
  local pending = redis.pcall('XPENDING', KEYS[at], ARGV[1], entry, entry, 1)
  local owner = not pending.err and pending[1] and pending[1][2] or ''
  found[#found + 1] = entry
  found[#found + 1] = holders[number + 1] == HALTED and 'halted' or owner
end
return found
