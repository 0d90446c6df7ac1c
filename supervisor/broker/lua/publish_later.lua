-- KEYS later, then the idempotency key if there is one; ARGV due in ms, 'after' (from now) or 'at' (Unix time),
-- fingerprint, ttl in ms, then an id and a member for each message.
-- Stores messages that are published when they are due. Gives {status, due, id...}: 0 stored now, 1 stored before,
-- 2 the key belongs to another payload. The key holds `<fingerprint> <due> <id> <id>...`.
-- include: clock
if KEYS[2] then
  local held = redis.call('GET', KEYS[2])
  if held then
    local found = {}
    for word in string.gmatch(held, '%S+') do
      found[#found + 1] = word
    end
    if found[1] ~= ARGV[3] then
      return {2}
    end
    found[1] = 1
    return found
  end
end
local due = tonumber(ARGV[1]) + (ARGV[2] == 'after' and now_ms() or 0)
due = string.format('%.0f', due)
local reply, held = {0, due}, {ARGV[3], due}
for at = 5, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], due, ARGV[at + 1])
  reply[#reply + 1] = ARGV[at]
  held[#held + 1] = ARGV[at]
end
if KEYS[2] then
  redis.call('SET', KEYS[2], table.concat(held, ' '), 'PX', ARGV[4])
end
return reply
