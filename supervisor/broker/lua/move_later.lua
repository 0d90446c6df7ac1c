-- KEYS later, stream; ARGV by how many ms the clock is ahead, then for each message its member, the number of its names
-- and values, and these.
-- Publishes messages that are due and still there: another keeper may have moved one, its producer may have cancelled
-- it or moved its due time. Gives their new ids.
-- XADD comes first: out of memory, read only or a wrong type then stop the script while the message is still there.
-- include: clock
local now, ids, at = now_ms() + ARGV[1], {}, 2
while at <= #ARGV do
  local member, values = ARGV[at], tonumber(ARGV[at + 1])
  local due = redis.call('ZSCORE', KEYS[1], member)
  if due and tonumber(due) <= now then
    ids[#ids + 1] = redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 2, at + 1 + values))
    redis.call('ZREM', KEYS[1], member)
  end
  at = at + values + 2
end
return ids
