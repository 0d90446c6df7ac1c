-- KEYS replay stream, its retries, its crashes, its isolation markers; ARGV group.
local member
for _, group in ipairs(rows_of(redis.pcall('XINFO', 'GROUPS', KEYS[1]))) do
  if group.name == ARGV[1] then
    member = group
  end
end
local function count_unread(most)
  local last = member and member['last-delivered-id'] or '0-0'
  return #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', most)
end
local function remove_if_done()
  if redis.call('XLEN', KEYS[1]) == 0 and #redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]) == 0 then
    redis.call('DEL', unpack(KEYS))
  end
end
