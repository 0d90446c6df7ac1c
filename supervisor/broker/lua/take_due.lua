-- KEYS stream, replay stream, due messages, behind, retries, retries of the replay stream, rates, due messages and
-- rates of before a change that is under way; ARGV group, consumer, how many.
-- Has the consumer take over messages whose time has come. Gives {{1 or 2 for the replay stream, id, fields, retry record
-- or ''} of each, ms until the next one is due or -1, number of those that wait, 1 when a change is under way}.
-- include: rate_clock expire_rates
local now_us = rate_now_us(KEYS[4], KEYS[3])
local now = math.floor(now_us / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[3])
local taken = {}
for _, name in ipairs(due) do
  local copy = string.match(name, '@(.+)$')
  local at, entry = copy and 2 or 1, copy or name
  -- A message that WAITS no longer holds was given to a worker, which may be running it.
  local claimed = redis.pcall('XPENDING', KEYS[at], ARGV[1], entry, entry, 1, WAITS)
  if not claimed.err and #claimed > 0 then
    claimed = redis.pcall('XCLAIM', KEYS[at], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
  end
  if claimed.err and not string.find(claimed.err, 'NOGROUP', 1, true) then
    return claimed
  end
  redis.call('ZREM', KEYS[3], name)
  if not claimed.err and #claimed > 0 then
    local found = redis.call('XRANGE', KEYS[at], entry, entry)[1]
    if found then
      taken[#taken + 1] = {at, entry, found[2], redis.call('HGET', KEYS[4 + at], entry) or ''}
    else -- before Redis 7.0 XCLAIM gives entries that were deleted
      redis.call('XACK', KEYS[at], ARGV[1], entry)
    end
  end
end
if #due > 0 then
  expire_rates(KEYS[7], KEYS[3], now_us)
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return {taken, first and math.max(0, tonumber(first) - now) or -1, redis.call('ZCARD', KEYS[3]),
  redis.call('EXISTS', KEYS[8], KEYS[9]) > 0 and 1 or 0}
