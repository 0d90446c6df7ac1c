-- KEYS stream, retries, crashes.

-- Whether the message is pending, with a name after the id: pending with that consumer. A message of a missing group is
-- not; any other error is the second result.
local function is_pending(group, id, ...)
  local rows = redis.pcall('XPENDING', KEYS[1], group, id, id, 1, ...)
  if rows.err and not string.find(rows.err, 'NOGROUP', 1, true) then
    return false, rows
  end
  return #rows > 0
end
-- Acks messages and removes what is stored about them; with `replay_stream`, the same key as the stream, removes the
-- entries as well. Gives the number of acked messages.
local function settle(group, replay_stream, ...)
  local acked = redis.call('XACK', KEYS[1], group, ...)
  redis.call('HDEL', KEYS[2], ...)
  redis.call('HDEL', KEYS[3], ...)
  if replay_stream then
    redis.call('XDEL', replay_stream, ...)
  end
  return acked
end
