-- KEYS stream, replay stream, due messages, behind, rates, rates of before a change that is under way, interval; ARGV
-- group, interval in us, tolerance in us, 1 or 2 for the replay stream, 1 to start all now, then for each message its
-- name, its rate, and its cost.
-- Reserves the time of each message's start (GCRA). `rates` is a sorted set of the times at which the
-- next message of each rate may start, us. What may not start now goes to the consumer WAITS and into `due` (a sorted set
-- by ms). Both are of the rates' clock. Gives {a flag for each message: 1 when it starts now, ms until the first one is
-- due or -1}.
-- include: changed_rate rate_clock expire_rates
local at, interval_us, tolerance_us = tonumber(ARGV[4]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now_us = rate_now_us(KEYS[4], KEYS[3])
local change = redis.call('EXISTS', KEYS[6]) == 1 and redis.call('GET', KEYS[7])
local flags, waiting, next_us, changes = {}, {}, {}, {'ZADD', KEYS[5]}

local function next_of(rate)
  local us = redis.call('ZSCORE', KEYS[5], rate)
  local before_us = not us and change and redis.call('ZSCORE', KEYS[6], rate)
  return before_us and changed(change, tonumber(before_us)) or tonumber(us or 0)
end

for number = 6, #ARGV, 3 do
  local name, rate = ARGV[number], ARGV[number + 1]
  local next_one = next_us[rate] or math.max(now_us, next_of(rate))
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
  changes[#changes + 1] = string.format('%.0f', us)
  changes[#changes + 1] = rate
end
-- Twice as many go as come, so none of those that are over is kept for long.
local over = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now_us), 'LIMIT', 0, #changes)
if #over > 0 then
  redis.call('ZREM', KEYS[5], unpack(over))
end
redis.call(unpack(changes))
expire_rates(KEYS[5], KEYS[3], now_us)
if #waiting > 0 then
  local words = {'XCLAIM', KEYS[at], ARGV[1], WAITS, 0, unpack(waiting)}
  words[#words + 1] = 'JUSTID'
  redis.call(unpack(words))
end
local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
return {table.concat(flags), first and math.max(0, math.ceil(tonumber(first) - now_us / 1000)) or -1}
