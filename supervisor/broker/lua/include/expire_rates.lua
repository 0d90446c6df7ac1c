-- Has the times of the rates expire with the last one; not while messages wait, as the clock may stand still then.
local function expire_rates(rates, due, now_us)
  if redis.call('EXISTS', due) == 1 then
    redis.call('PERSIST', rates)
    return
  end
  local last_us = redis.call('ZRANGE', rates, -1, -1, 'WITHSCORES')[2]
  if last_us then
    redis.call('EXPIRE', rates, string.format('%.0f', math.ceil(math.max(0, last_us - now_us) / 1000000) + 1))
  end
end
