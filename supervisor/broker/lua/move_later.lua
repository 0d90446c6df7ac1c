-- KEYS later, stream, origins; ARGV by how many ms the clock is ahead, then for each message its member, its id, the
-- number of its names and values, and these.
-- Publishes messages that are due and still there: another keeper may have moved one, its producer may have cancelled
-- it or moved its due time. Gives their new ids.
-- XADD comes first: out of memory, read only or a wrong type then stop the script while the message is still there.
-- include: clock origin
local now, ids, at = now_ms() + ARGV[1], {}, 2
while at <= #ARGV do
  local member, values = ARGV[at], tonumber(ARGV[at + 2])
  local due = redis.call('ZSCORE', KEYS[1], member)
  if due and tonumber(due) <= now then
    local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 3, at + 2 + values))
    redis.call('ZREM', KEYS[1], member)
    note_origin(KEYS[3], id, 'kind', 'later', 'later', ARGV[at + 1])
    ids[#ids + 1] = id
  end
  at = at + values + 3
end
return ids
