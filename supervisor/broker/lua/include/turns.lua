-- Turns: which messages of a key may run now, over all workers.
-- KEYS stream, replay stream, turns, row of the group, ...; ARGV group, consumer, turns per key, turns of the group (0:
-- no limit), ...; WAITS is the consumer that holds what waits.
--
-- 1. A row is a sorted set of the unsettled messages of one key, in the order of the stream. A message whose score is
--    HOLDS has a turn and keeps it until it is settled, whichever worker has it; the others have their time as score. A
--    member with score HALTED is a message whose dead letter stops its key. When it is read once more (its group was
--    made again), it waits in its place like any other.
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
local HOLDS, HALTED = '-1', '-2' -- text: a number of Lua's is formatted at each call, which costs half a microsecond
local ROW = '+'
local MINUS = string.byte('-')
-- Members without a message (it was deleted, or acked by another program) that one call removes from a row at most.
local GONE_MAX = 1000
-- Entries that one command claims at most: unpack returns at most about 8,000 values.
local CLAIMED_MAX = 1000
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
  local copy = string.find(member, '@', 1, true)
  if copy then
    return 2, string.sub(member, copy + 1)
  end
  local dash = string.find(member, '-', 1, true)
  return 1, string.sub(member, 1, dash) .. string.sub(member, dash + 2)
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

-- Gives pending entries of one stream to the caller; notes those that exist in `there`, by `member_of_entry`.
-- XCLAIM looks each entry up to see whether it exists; since it then gives its fields, no XRANGE has to look for it again.
local function claim(at, entries, member_of_entry, there)
  local words = {'XCLAIM', KEYS[at], ARGV[1], ARGV[2], '0', unpack(entries)}
  words[#words + 1], words[#words + 2] = 'RETRYCOUNT', '1' -- a change of owner is not a delivery
  local claimed = redis.pcall(unpack(words))
  if claimed.err and not is_missing(claimed) then
    error(claimed.err, 0)
  elseif claimed.err then
    return
  end
  local found = 0
  for _, one in ipairs(claimed) do
    if one then -- before Redis 7.0 entries that were deleted are claimed, too
      local member = member_of_entry[one[1]]
      there[member], found = true, found + 1
      taken[#taken + 1] = {at, one[1], one[2]}
    end
  end
  for number = 1, found < #entries and #entries or 0 do
    if not there[member_of_entry[entries[number]]] then
      ask('XACK', KEYS[at], ARGV[1], entries[number])
    end
  end
end

-- Gives messages whose turns have come to the caller, except those that it has already: members of the set `own`. Returns
-- the set of those that exist.
local function take(members, own)
  local there, entries, of = {}, {{}, {}}, {{}, {}}
  for number, member in ipairs(members) do
    if own and own[member] then
      there[member] = true
    else
      local at, entry = entry_of(member)
      entries[at][#entries[at] + 1] = entry
      of[at][entry] = member
    end
    for at = 1, 2 do
      if #entries[at] > 0 and (number == #members or #entries[at] == CLAIMED_MAX) then
        claim(at, entries[at], of[at], there)
        entries[at] = {}
      end
    end
  end
  return there
end

-- The members that are next to get a turn, and whether the row is empty. With few turns, one look at as many members is
-- quicker than counting.
local function next_of(row, limit)
  if limit > 1 then
    local left = limit - ask('ZCOUNT', row, '-inf', '(0')
    local found = left > 0 and ask('ZRANGEBYSCORE', row, 0, '+inf', 'LIMIT', 0, left) or {}
    return found, left == limit and #found == 0
  end
  local first = ask('ZRANGE', row, '0', '0', 'WITHSCORES')
  return first[2] and string.byte(first[2]) ~= MINUS and {first[1]} or {}, not first[2]
end

-- Gives turns to the first members of rows while these have some left; `start(members)` returns the set of those whose
-- messages exist. Returns the names of the rows that are empty.
local function give(rows, limit, start)
  local gone, empty = 0, {}
  repeat
    local members, row_of, again = {}, {}, {}
    for _, row in ipairs(rows) do
      local next_ones, is_empty = next_of(row, limit)
      for _, member in ipairs(next_ones) do
        members[#members + 1], row_of[member] = member, row
      end
      if is_empty then
        empty[#empty + 1] = row
      end
    end
    local there = start(members)
    for _, member in ipairs(members) do
      local row = row_of[member]
      if there[member] then
        ask('ZADD', row, HOLDS, member)
      else
        ask('ZREM', row, member)
        gone = gone + 1
        if again[#again] ~= row then
          again[#again + 1] = row
        end
      end
    end
    rows = again
  until #rows == 0 or gone > GONE_MAX
  return empty
end

-- Puts messages that have the turn of their key into the row of the group.
local function enter_group(members)
  local there = {}
  for _, member in ipairs(members) do
    ask('ZADD', KEYS[4], 'NX', string.match(member, '^%d+'), member)
    there[member] = true
  end
  return there
end

-- Gives the free turns of the rows that are sorted sets, by their fields (a set), then those of the group. The caller has
-- the messages in the set `own` already.
local function give_all(fields, own)
  local function start(members)
    return take(members, own)
  end
  local rows, field_of = {}, {}
  for field in pairs(fields) do
    local row = KEYS[4] .. field
    rows[#rows + 1], field_of[row] = row, field
  end
  for _, row in ipairs(give(rows, per_key, per_group > 0 and enter_group or start)) do
    ask('HDEL', KEYS[3], field_of[row])
  end
  if per_group > 0 then
    give({KEYS[4]}, per_group, start)
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
