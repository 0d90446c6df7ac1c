-- KEYS due messages, interval, behind, then rates; ARGV new interval in us[, ms by the rates' clock, old interval in us].
-- Notes the interval of the group's rate. When it was another one, the times that are reserved come closer together or
-- further apart, as if all had been reserved with the new one. Gives {now in ms, the old interval, '' when it is the same
-- or nothing waits}. Called again with these, and with rates, it does the same to their theoretical arrival times.
-- include: rate_clock
local now = tonumber(ARGV[2]) or math.floor(rate_now_us(KEYS[3], KEYS[1]) / 1000)
local old = ARGV[3] or redis.call('GET', KEYS[2])
local times = old and tonumber(ARGV[1]) / tonumber(old)
for number = 4, #KEYS do
  local next_us = redis.call('GET', KEYS[number])
  local ahead_us = next_us and (tonumber(next_us) - now * 1000) * times or 0
  if ahead_us > 0 then
    local ttl_ms = string.format('%.0f', math.ceil(ahead_us / 1000) + 1000)
    redis.call('SET', KEYS[number], string.format('%.0f', now * 1000 + ahead_us), 'PX', ttl_ms)
  end
end
if ARGV[2] then
  return {}
end
if old ~= ARGV[1] then
  redis.call('SET', KEYS[2], ARGV[1])
end
if not old or times == 1 or redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, ''}
end
local waiting = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'WITHSCORES')
for first = 1, #waiting, 2000 do
  local words = {'ZADD', KEYS[1]}
  for number = first, math.min(first + 1998, #waiting - 1), 2 do
    words[#words + 1] = string.format('%.0f', now + (tonumber(waiting[number + 1]) - now) * times)
    words[#words + 1] = waiting[number]
  end
  redis.call(unpack(words))
end
return {now, old}
