-- KEYS dead letters, row of the key, released rows; ARGV letter id, message id, field of the key.
-- Removes a dead letter that has halted its key. A worker passes the turn on when it looks at the released rows. Gives
-- the number of removed letters.
local removed = redis.call('XDEL', KEYS[1], ARGV[1])
local ms, seq = string.match(ARGV[2], '^(%d+)-(%d+)$')
local member = ms .. '-' .. string.char(96 + #seq) .. seq
-- With another score the message itself is in its place: it was read once more.
if removed == 1 and redis.call('ZSCORE', KEYS[2], member) == '-2' then
  redis.call('ZREM', KEYS[2], member)
  redis.call('SADD', KEYS[3], ARGV[3])
end
return removed
