-- KEYS last ticks, paused schedules; ARGV name of the schedule, when it comes.
-- Lets a paused schedule go on from now: ticks of the pause are not missed. Gives 1 if it was paused, else 0.
-- include: clock
if not redis.call('HGET', KEYS[2], ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now_ms()) .. ' ' .. ARGV[2])
return redis.call('HDEL', KEYS[2], ARGV[1])
