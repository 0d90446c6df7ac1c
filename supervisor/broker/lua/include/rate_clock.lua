-- The clock of a group's rates, Unix us: the server's, set back by the ms in `behind`. It stands still while nobody takes
-- what is due (`take_due.lua`), so that what became due in an outage does not start all at once.
local function rate_now_us(behind)
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2] - 1000 * tonumber(redis.call('GET', behind) or 0)
end
