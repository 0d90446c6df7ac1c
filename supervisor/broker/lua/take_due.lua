-- KEYS stream, replay stream, due messages, behind, retries, retries of the replay stream; ARGV group, consumer, how many.
-- Has the consumer take over messages whose time has come. Gives {{1 or 2 for the replay stream, id, fields, retry record
-- or ''} of each, ms until the next one is due or -1, number of those that wait}.
-- When the first one is later than LATE_MS, nobody has taken anything for so long: the clock of the rates is set back, and
-- what was due meanwhile starts one after another.
-- include: rate_clock
local now = math.floor(rate_now_us(KEYS[4]) / 1000)
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
local late = first and math.floor(now - tonumber(first)) - LATE_MS or 0
if late > 0 then
  redis.call('SET', KEYS[4], string.format('%.0f', tonumber(redis.call('GET', KEYS[4]) or 0) + late))
  now = now - late
end
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
first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return {taken, first and math.max(0, tonumber(first) - now) or -1, redis.call('ZCARD', KEYS[3])}
