-- KEYS stream, replay stream, turns, row of the group, then the rows of keys; ARGV group, consumer, turns per key, turns
-- of the group, mode, then (mode `others`) up to which entry all are given, else '', then for each message its name and
-- the number in KEYS of its row, or 0.
-- Gives messages their places in their rows, in the order of the stream, whoever reads first. Modes:
--   new     what the consumer has just read: neighbours in the stream
--   own     what the consumer found in its pending list
--   copies  the same, or what it has read, from the replay stream
--   others  entries of the stream that other consumers have read but not admitted
-- The record `admitted` in turns says up to which entry all have their places. When others lack theirs before these
-- messages, nothing is done: the caller has to look at these entries first. What may not run goes to the consumer WAITS.
-- Gives {'', a flag for each message: 1 when the consumer may run it, what else the consumer has to run}, or {the record
-- from which on places are missing}, or {'none'} when there is no record.
-- include: ids turns
local mode, upto = ARGV[5], ARGV[6]
local at = mode == 'copies' and 2 or 1
local admitted = ask('HGET', KEYS[3], 'admitted')
local names, rows = {}, {}
for number = 7, #ARGV, 2 do
  names[#names + 1] = ARGV[number]
  rows[#names] = KEYS[tonumber(ARGV[number + 1])]
end
local first, last = names[1], names[#names]
local is_new = false
if mode == 'new' or mode == 'own' then
  if not admitted then
    return {'none'}
  end
  is_new = mode == 'new' and below(admitted, first)
  local to = is_new and '(' .. first or mode == 'own' and below(admitted, last) and last
  if to and #ask('XRANGE', KEYS[1], '(' .. admitted, to, 'COUNT', 1) > 0 then
    return {admitted}
  end
end

-- What was read before: another worker may have taken it over since, and settled it.
local held = {}
if first and not is_new then
  local _, _, from = member_of(first)
  local _, _, to = member_of(last)
  local words = {'XPENDING', KEYS[at], ARGV[1], from, to, 1000000}
  words[7] = mode ~= 'others' and ARGV[2] or nil
  for _, row in ipairs(ask(unpack(words))) do
    held[row[1]] = true
  end
end

local given, touched = {}, {}
local function start(member)
  return given[member] or take(member)
end

-- Gives a place in a row; whether it is known to have a turn.
local function enter(row, limit, member, ms, own)
  if is_new and ask('ZCARD', row) < limit then
    ask('ZADD', row, HOLDS, member)
    return true
  end
  if own ~= member and ask('ZREM', row, own) == 1 then -- its message has halted the key
    ask('ZADD', row, HOLDS, member)
  elseif ask('ZADD', row, 'NX', ms, member) == 0 and tonumber(ask('ZSCORE', row, member)) == HALTED then
    ask('ZADD', row, HOLDS, member)
  end
  return not is_new and tonumber(ask('ZSCORE', row, member)) < 0
end

local members, flags, waiting = {}, {}, {}
for number, name in ipairs(names) do
  local member, ms, entry, own = member_of(name)
  if is_new or held[entry] then
    local row, passed = rows[number], true
    if row then
      passed = enter(row, per_key, member, ms, own)
    end
    if passed and per_group > 0 then
      passed = enter(KEYS[4], per_group, member, ms, own)
    end
    if not is_new then
      members[number], given[member] = member, true
      touched[row or 0] = true
    elseif passed then
      flags[number] = '1'
    else
      waiting[#waiting + 1] = entry
    end
  end
end
if not is_new then
  touched[0] = nil
  give_all(touched, start)
end

if mode == 'new' and is_new or mode == 'others' and upto ~= '' and not (admitted and below(upto, admitted)) then
  ask('HSET', KEYS[3], 'admitted', is_new and last or upto)
elseif mode == 'new' and below(admitted, last) then
  ask('HSET', KEYS[3], 'admitted', last)
end
if mode == 'others' then
  return {'', '', taken}
end

for number, member in pairs(members) do
  local row = per_group > 0 and KEYS[4] or rows[number]
  if not row or tonumber(ask('ZSCORE', row, member) or 0) < 0 then
    flags[number] = '1'
  else
    local _, entry = entry_of(member)
    waiting[#waiting + 1] = entry
  end
end
for number = 1, #names do
  flags[number] = flags[number] or '0'
end
if #waiting > 0 then
  local words = {'XCLAIM', KEYS[at], ARGV[1], WAITS, 0, unpack(waiting)}
  words[#words + 1] = 'JUSTID'
  ask(unpack(words))
end
return {'', table.concat(flags), taken}
