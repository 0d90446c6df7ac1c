-- KEYS stream, last ticks, paused schedules, origins; ARGV name of the schedule, when it comes, then for each tick its
-- Unix ms, the number of names and values of its message, and these.
-- Publishes the ticks after the last one, each once whoever calls it, and notes them. Gives the new ids; none while
-- the schedule is paused.
-- XADD comes first: out of memory, read only or a wrong type then stop the script while the tick is not noted.
-- include: origin
local ids, at = {}, 3
if redis.call('HGET', KEYS[3], ARGV[1]) then
  return ids
end
local last = tonumber(string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^%d+')) or 0
while at <= #ARGV do
  local tick, values = ARGV[at], tonumber(ARGV[at + 1])
  if tonumber(tick) > last then
    local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 2, at + 1 + values))
    redis.call('HSET', KEYS[2], ARGV[1], tick .. ' ' .. ARGV[2])
    last = tonumber(tick)
    note_origin(KEYS[4], id, 'kind', 'schedule', 'schedule', ARGV[1], 'tick_ms', tick)
    ids[#ids + 1] = id
  end
  at = at + values + 2
end
return ids
