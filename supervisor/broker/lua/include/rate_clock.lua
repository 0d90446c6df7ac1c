-- The clock of a group's rates, Unix us: the server's, set back by the ms in `behind`. It stands still while nobody takes
-- what is due: when the first one is later than LATE_MS, the clock is set back first. So what became due in an outage does
-- not start all at once, and what is reserved after it does not wait for as long as the outage was.
local function rate_now_us(behind, due)
  local time = redis.call('TIME')
  local back = tonumber(redis.call('GET', behind) or 0)
  local now_us = time[1] * 1000000 + time[2] - 1000 * back
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
  local late = first and math.floor(now_us / 1000 - tonumber(first)) - LATE_MS or 0
  if late > 0 then
    redis.call('SET', behind, string.format('%.0f', back + late))
    now_us = now_us - 1000 * late
  end
  return now_us
end
