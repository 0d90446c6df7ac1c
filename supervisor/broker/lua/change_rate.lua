-- KEYS due messages, rates, the same two of before the change, interval, behind; ARGV interval in us, how many to change.
-- Applies the interval of the group's rate. When it was another one, the times that are reserved come closer together or
-- further apart, as if all had been reserved with the new one. They are set aside at once and brought back changed, so
-- many in each call; the interval says what is under way, so any caller can go on: with '' as interval it does no more
-- than this. Gives 0 when nothing is left to do.
-- include: changed_rate rate_clock expire_rates
local is_changing = redis.call('EXISTS', KEYS[3], KEYS[4]) > 0
local change = redis.call('GET', KEYS[5]) or ''
local interval = string.match(change, '^%S*')
local is_other = ARGV[1] ~= '' and interval ~= ARGV[1]
if not is_changing and is_other then
  is_changing = interval ~= '' and redis.call('EXISTS', KEYS[1], KEYS[2]) > 0
  change = ARGV[1]
  if is_changing then
    change = string.format('%s %s %.0f', ARGV[1], interval, rate_now_us(KEYS[6], KEYS[1]))
  end
  is_other = false
  redis.call('SET', KEYS[5], change)
  for at = 1, is_changing and 2 or 0 do
    if redis.call('EXISTS', KEYS[at]) == 1 then
      redis.call('RENAME', KEYS[at], KEYS[at + 2])
      redis.call('PERSIST', KEYS[at + 2])
    end
  end
end
if not is_changing then
  return 0
end
local left = 0
for at, unit_us in ipairs({1000, 1}) do
  local found = redis.call('ZRANGE', KEYS[at + 2], 0, ARGV[2] - 1, 'WITHSCORES')
  local words, names = {'ZADD', KEYS[at], 'NX'}, {'ZREM', KEYS[at + 2]} -- NX: it was reserved again since
  for number = 1, #found, 2 do
    words[number + 3] = string.format('%.0f', changed(change, found[number + 1] * unit_us) / unit_us)
    words[number + 4] = found[number]
    names[#names + 1] = found[number]
  end
  if #found > 0 then
    redis.call(unpack(words))
    redis.call(unpack(names))
  end
  left = left + redis.call('ZCARD', KEYS[at + 2])
end
if left == 0 then
  expire_rates(KEYS[2], KEYS[1], rate_now_us(KEYS[6], KEYS[1]))
end
return left == 0 and is_other and 1 or left
