-- KEYS stream, replay stream, due messages, behind, then the rates; ARGV group, interval in us, tolerance in us, 1 or 2 for the
-- replay stream, 1 to start all now, then for each message its name, the number in KEYS of its rate, and its cost.
-- Reserves the time of each message's start (GCRA, as `core/rate.py`). What may not start now goes to the consumer WAITS
-- and into `due` (a sorted set by Unix ms of the rates' clock). Gives {a flag for each message: 1 when it starts now, ms until the first one
-- is due or -1}.
-- include: rate_clock
local at, interval_us, tolerance_us = tonumber(ARGV[4]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now_us = rate_now_us(KEYS[4], KEYS[3])
local flags, waiting, next_us = {}, {}, {}
for number = 6, #ARGV, 3 do
  local name, rate = ARGV[number], KEYS[tonumber(ARGV[number + 1])]
  local next_one = next_us[rate] or math.max(now_us, tonumber(redis.call('GET', rate) or 0))
  local due_us = math.max(now_us, next_one - tolerance_us)
  next_us[rate] = next_one + interval_us * tonumber(ARGV[number + 2])
  local starts = ARGV[5] == '1' or due_us == now_us
  flags[#flags + 1] = starts and '1' or '0'
  if not starts then
    redis.call('ZADD', KEYS[3], string.format('%.0f', math.ceil(due_us / 1000)), name)
    waiting[#waiting + 1] = string.match(name, '@(.+)$') or name
  end
end
for rate, us in pairs(next_us) do
  local ttl_ms = math.ceil((us - now_us) / 1000) + 1000
  redis.call('SET', rate, string.format('%.0f', us), 'PX', string.format('%.0f', ttl_ms))
end
if #waiting > 0 then
  local words = {'XCLAIM', KEYS[at], ARGV[1], WAITS, 0, unpack(waiting)}
  words[#words + 1] = 'JUSTID'
  redis.call(unpack(words))
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return {table.concat(flags), first and math.max(0, math.ceil(tonumber(first) - now_us / 1000)) or -1}
