-- KEYS stream, replay stream, turns, row of the group, released rows; ARGV group, consumer, turns per key, turns of the
-- group, number of rows, the rows' fields, then the names of messages that wait and need no turn.
-- Takes turns from messages that no longer exist (deleted, or acked by another program) and passes them on. Gives
-- {number of those, what the consumer has to run, what has a turn and was the consumer's before}. The answer that gave it
-- the last of these may have been lost. A predecessor may have run them, too.
-- include: turns allow_full
allow_full(KEYS[3])
local gone, touched, own, count = 0, {}, {}, tonumber(ARGV[5])
local function check(row, passed)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', row, HOLDS, HOLDS)) do
    local at, entry = entry_of(member)
    local pending = redis.pcall('XPENDING', KEYS[at], ARGV[1], entry, entry, 1)
    if pending.err and not is_missing(pending) then
      error(pending.err, 0)
    end
    local owner = not pending.err and pending[1] and pending[1][2]
    if owner == ARGV[2] and passed == take then
      own[#own + 1] = {at, entry}
    elseif not owner or (owner == WAITS or owner == ARGV[2]) and not passed({member})[member] then
      leave(member, row)
      gone = gone + 1
    end
  end
end
for number = 6, 5 + count do
  check(opened(ARGV[number]), per_group > 0 and enter_group or take)
  touched[ARGV[number]] = true
  redis.call('SREM', KEYS[5], ARGV[number])
end
if per_group > 0 then
  check(KEYS[4], take)
end
for number = 6 + count, #ARGV do
  local member = member_of(ARGV[number])
  local at, entry = entry_of(member)
  -- No row says who may run it: one that WAITS no longer holds was given to a worker, which may be running it.
  local waits = redis.pcall('XPENDING', KEYS[at], ARGV[1], entry, entry, 1, WAITS)
  if waits.err or #waits > 0 then
    take({member})
  end
end
give_all(touched)
return {gone, taken, own}
