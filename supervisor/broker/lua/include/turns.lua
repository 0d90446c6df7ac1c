-- Turns: which messages of a key may run now, over all workers.
-- KEYS stream, replay stream, turns, row of the group, ...; ARGV group, consumer, turns per key, turns of the group (0:
-- no limit), ...; WAITS is the consumer that holds what waits.
--
-- 1. A row is a sorted set of the unsettled messages of one key, in the order of the stream. A message whose score is
--    HOLDS has a turn and keeps it until it is settled, whichever worker has it; the others have their time as score. A
--    member with score HALTED is a dead letter that stops its key.
-- 2. A member is the message's id with a letter for the number of digits before its sequence (`1700000000000-b10`), so
--    that members of the same millisecond sort as ids do. A copy in the replay stream is a member of its message's id,
--    with `@` and its own id behind it. Scripts are called with the plain forms, `1700000000000-10` and `0-10@...`.
-- 3. The pending list says who has a message. One that waits belongs to the consumer WAITS, so that no worker finds it
--    when it reads its own list. Whoever settles a message takes over the next one of its row, in the same script.
-- 4. With a limit for the group, a message that has the turn of its key then waits in the row of the group.
-- 5. Most rows have one message, which has the turn. Such a row is only a field of the hash `turns`: a colon and the key,
--    with the plain form of the message as value. So the rows of a whole batch are read and written with one command
--    each. When a second message comes, the row becomes a sorted set, and the field's value is ROW until it is empty.
--    The sorted set is named after the field, behind the name of the group's row, so it is in the same slot.
local ask = redis.call -- a local is found quicker
local HOLDS, HALTED = -1, -2
local ROW = '+'
local MINUS = string.byte('-')
-- Members without a message (it was deleted, or acked by another program) that one call removes from a row at most.
local GONE_MAX = 1000
local per_key, per_group = tonumber(ARGV[3]), tonumber(ARGV[4])
-- The messages that the caller takes over: {1, or 2 for the replay stream, id, fields}.
local taken = {}

-- The member of a message, its time, its id in the stream that it is read from, and the member of its original.
local function member_of(name)
  local ms, seq, copy = string.match(name, '^(%d+)-(%d+)(.*)$')
  local own = ms .. '-' .. string.char(96 + #seq) .. seq
  return own .. copy, ms, copy == '' and name or string.sub(copy, 2), own
end

local function entry_of(member)
  local copy = string.match(member, '@(.+)$')
  if copy then
    return 2, copy
  end
  return 1, (string.gsub(member, '-%a', '-', 1))
end

local function is_missing(reply)
  return type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true)
end

-- The row of a key as a sorted set.
local function opened(field)
  local row, name = KEYS[4] .. field, ask('HGET', KEYS[3], field)
  if name ~= ROW then
    if name then
      ask('ZADD', row, HOLDS, (member_of(name)))
    end
    ask('HSET', KEYS[3], field, ROW)
  end
  return row
end

-- Gives a message whose turn has come to the caller; false when the message no longer exists.
local function take(member)
  local at, entry = entry_of(member)
  local claimed = redis.pcall('XCLAIM', KEYS[at], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
  if claimed.err and not is_missing(claimed) then
    error(claimed.err, 0)
  elseif claimed.err or #claimed == 0 then
    return false
  end
  local found = ask('XRANGE', KEYS[at], entry, entry)[1]
  if not found then -- before Redis 7.0 XCLAIM gives entries that were deleted
    ask('XACK', KEYS[at], ARGV[1], entry)
    return false
  end
  taken[#taken + 1] = {at, entry, found[2]}
  return true
end

-- The members that are next to get a turn, and whether the row is empty. With few turns, one look at as many members is
-- quicker than counting.
local function next_of(row, limit)
  if limit > 1 then
    local left = limit - ask('ZCOUNT', row, '-inf', '(0')
    local found = left > 0 and ask('ZRANGEBYSCORE', row, 0, '+inf', 'LIMIT', 0, left) or {}
    return found, left == limit and #found == 0
  end
  local first = ask('ZRANGE', row, 0, 0, 'WITHSCORES')
  return first[2] and string.byte(first[2]) ~= MINUS and {first[1]} or {}, not first[2]
end

-- Gives turns to the first members of a row while it has some left; `start(member)` says whether its message exists.
-- Gives whether the row is empty.
local function give(row, limit, start)
  local gone = 0
  repeat
    local next_ones, is_empty = next_of(row, limit)
    local gone_before = gone
    for _, member in ipairs(next_ones) do
      if start(member) then
        ask('ZADD', row, HOLDS, member)
      else
        ask('ZREM', row, member)
        gone = gone + 1
      end
    end
    if is_empty then
      return true
    end
  until gone == gone_before or gone > GONE_MAX
  return false
end

-- Puts a message that has the turn of its key into the row of the group.
local function enter_group(member)
  ask('ZADD', KEYS[4], 'NX', string.match(member, '^%d+'), member)
  return true
end

-- Gives the free turns of the rows that are sorted sets, by their fields (a set), then those of the group.
local function give_all(fields, start)
  for field in pairs(fields) do
    if give(KEYS[4] .. field, per_key, per_group > 0 and enter_group or start) then
      ask('HDEL', KEYS[3], field)
    end
  end
  if per_group > 0 then
    give(KEYS[4], per_group, start)
  end
end

-- Removes a message from the row of its key, a sorted set, and from that of the group.
local function leave(member, row)
  if row then
    ask('ZREM', row, member)
  end
  if per_group > 0 then
    ask('ZREM', KEYS[4], member)
  end
end
