-- KEYS stream, dead letters, retries, crashes, replay stream; ARGV group, letter id, message id. ORIGIN, FIELD_PREFIX:
-- see broker/scripts.py.
-- Puts a message back to its group as if it had never been tried: a copy goes to the group's replay stream. A message
-- that is pending already (its group was made again) stays with its consumer.
-- include: call
local letter = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])[1]
if not letter then
  return 'gone'
end
local function failed(reply, code)
  return type(reply) == 'table' and reply.err and not string.find(reply.err, code, 1, true)
end
if #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) > 0 then
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
  if failed(pending, 'NOGROUP') then
    return pending
  elseif pending.err then
    return 'no-group'
  elseif #pending > 0 then
    return 'pending'
  end
end
local words = {'XADD', KEYS[5], '*', ORIGIN, ARGV[3]}
for at = 1, #letter[2], 2 do
  local name = letter[2][at]
  if string.sub(name, 1, #FIELD_PREFIX) == FIELD_PREFIX then
    words[#words + 1] = string.sub(name, #FIELD_PREFIX + 1)
    words[#words + 1] = letter[2][at + 1]
  end
end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[5], ARGV[1], '0', 'MKSTREAM')
if failed(made, 'BUSYGROUP') then
  return made
end
call(words)
redis.call('HDEL', KEYS[3], ARGV[3])
redis.call('HDEL', KEYS[4], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[2])
return 'replayed'
