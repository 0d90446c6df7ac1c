-- KEYS dead letters, row of the key, released rows; ARGV letter id, message id, field of the key.
-- Removes a dead letter that has halted its key. A worker passes the turn on when it looks at the released rows. Gives
-- the number of removed letters.
local removed = redis.call('XDEL', KEYS[1], ARGV[1])
local ms, seq = string.match(ARGV[2], '^(%d+)-(%d+)$')
if removed == 1 and redis.call('ZREM', KEYS[2], ms .. '-' .. string.char(96 + #seq) .. seq) == 1 then
  redis.call('SADD', KEYS[3], ARGV[3])
end
return removed
