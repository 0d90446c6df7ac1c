-- KEYS idempotency, stream, then origins where a handler has returned the messages; ARGV fingerprint, ttl in ms, for such
-- messages the stream, the group and the ids that they come from, then for each message the number of its names and
-- values, and these.
-- Stores messages under an idempotency key, once however often it is called. Gives {status, id...}: 0 stored now,
-- 1 stored before, 2 the key belongs to another payload. The key holds `<fingerprint> <id> <id>...`.
-- XADD comes first: out of memory, read only or a wrong type then stop the script before anything was written.
-- include: origin
local held = redis.call('GET', KEYS[1])
if held then
  local found = {}
  for word in string.gmatch(held, '%S+') do
    found[#found + 1] = word
  end
  if found[1] ~= ARGV[1] then
    return {2}
  end
  found[1] = 1
  return found
end
local reply, ids, at = {0}, {ARGV[1]}, KEYS[3] and 6 or 3
while at <= #ARGV do
  local values = tonumber(ARGV[at])
  local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 1, at + values))
  reply[#reply + 1] = id
  ids[#ids + 1] = id
  if KEYS[3] then
    note_origin(KEYS[3], id, 'kind', 'emit', 'stream', ARGV[3], 'group', ARGV[4], 'ids', ARGV[5])
  end
  at = at + values + 1
end
redis.call('SET', KEYS[1], table.concat(ids, ' '), 'PX', ARGV[2])
return reply
