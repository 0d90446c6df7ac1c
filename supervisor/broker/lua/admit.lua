-- KEYS stream, replay stream, turns, row of the group; ARGV group, consumer, turns per key, turns of the group, mode, then
-- (mode `others`) up to which entry all are given, else '', then the names of the messages, then for each the field of
-- its key, or ''.
-- Gives messages their places in their rows, in the order of the stream, whoever reads first. Modes:
--   new     what the consumer has just read: neighbours in the stream
--   own     what the consumer found in its pending list
--   copies  the same, or what it has read, from the replay stream
--   others  entries of the stream that other consumers have read but not admitted
-- The record `admitted` in turns says up to which entry all have their places. When others lack theirs before these
-- messages, nothing is done: the caller has to look at these entries first. What may not run goes to the consumer WAITS.
-- Gives {'', the numbers of the messages that the consumer may not run, what else the consumer has to run}, or {the record
-- from which on places are missing}, or {'none'} when there is no record.
-- include: ids turns allow_full
allow_full(KEYS[3])
local args, mode, upto, count = ARGV, ARGV[5], ARGV[6], (#ARGV - 6) / 2
local at = mode == 'copies' and 2 or 1
local admitted = ask('HGET', KEYS[3], 'admitted')
local first, last = count > 0 and args[7], count > 0 and args[6 + count]
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

-- Those that may not run, and of these the ones that have to wait.
local idle, waiting = {}, {}

-- New messages come last in their rows. One HSET notes the messages that are alone with their keys and which rows become
-- sorted sets; one ZADD for each such row adds all of its new messages.
local function admit_new()
  local held = ask('HMGET', KEYS[3], unpack(args, 7 + count))
  local words, used = {'HSET', KEYS[3], 'admitted', last}, 4
  local alone, rows, waits = {}, {}, {}
  for number = 1, count do
    local name, field = args[6 + number], args[6 + count + number]
    local holder, at = held[number], alone[field]
    if field ~= '' and not holder and not at then
      words[used + 1], words[used + 2] = field, name
      used = used + 2
      alone[field] = used
    elseif field ~= '' then
      local row = rows[field]
      if not row then
        row = {'ZADD', KEYS[4] .. field, size = 1}
        rows[field] = row
        if holder == ROW then
          row.size = ask('ZCARD', row[2])
        else
          row[3], row[4] = HOLDS, (member_of(holder or words[at]))
          if not at then
            words[used + 1], used = field, used + 2
          end
          words[at or used] = ROW
        end
      end
      local member, ms = member_of(name)
      waits[number] = row.size >= per_key
      row[#row + 1] = waits[number] and ms or HOLDS
      row[#row + 1] = member
      row.size = row.size + 1
    end
  end
  ask(unpack(words))
  for _, row in pairs(rows) do
    ask(unpack(row))
  end
  local left = per_group > 0 and per_group - ask('ZCARD', KEYS[4])
  for number = 1, left and count or 0 do
    if not waits[number] then
      local member, ms = member_of(args[6 + number])
      waits[number] = left <= 0
      ask('ZADD', KEYS[4], left > 0 and HOLDS or ms, member)
      left = left - 1
    end
  end
  for number = 1, (left or next(rows)) and count or 0 do
    if waits[number] then
      idle[#idle + 1], waiting[#waiting + 1] = number, args[6 + number]
    end
  end
end

-- Of messages that were read before, those that are still pending: another worker may have taken one over and settled it.
local function still_held()
  local held = {}
  if first then
    local _, _, from = member_of(first)
    local _, _, to = member_of(last)
    local words = {'XPENDING', KEYS[at], ARGV[1], from, to, 1000000}
    words[7] = mode ~= 'others' and ARGV[2] or nil
    for _, row in ipairs(ask(unpack(words))) do
      held[row[1]] = true
    end
  end
  return held
end

-- Gives a place in a row; whether it is known to have a turn.
local function enter(row, member, ms, own)
  local is_halted = ask('ZSCORE', row, own) == HALTED
  if is_halted and own ~= member then -- the copy takes the place of the dead letter
    ask('ZREM', row, own)
    ask('ZADD', row, HOLDS, member)
  elseif is_halted then
    ask('ZADD', row, ms, member)
  else
    ask('ZADD', row, 'NX', ms, member)
  end
  return tonumber(ask('ZSCORE', row, member)) < 0
end

local function admit_known()
  local held, members, given, touched = still_held(), {}, {}, {}
  for number = 1, count do
    local member, ms, entry, own = member_of(args[6 + number])
    local field = args[6 + count + number]
    if held[entry] then
      members[number], given[member] = member, true
      local passed = true
      if field ~= '' then
        passed = enter(opened(field), member, ms, own)
        touched[field] = true
      end
      if passed and per_group > 0 then
        enter(KEYS[4], member, ms, own)
      end
    end
  end
  give_all(touched, given)
  if mode == 'others' then
    return
  end
  for number = 1, count do
    local member, field = members[number], args[6 + count + number]
    local row = per_group > 0 and KEYS[4] or field ~= '' and KEYS[4] .. field
    if not member or row and tonumber(ask('ZSCORE', row, member) or 0) >= 0 then
      idle[#idle + 1] = number
      if member then
        local _, entry = entry_of(member)
        waiting[#waiting + 1] = entry
      end
    end
  end
end

if is_new then
  admit_new()
else
  admit_known()
  if mode == 'others' and upto ~= '' and not (admitted and below(upto, admitted)) then
    ask('HSET', KEYS[3], 'admitted', upto)
  elseif mode == 'new' and below(admitted, last) then
    ask('HSET', KEYS[3], 'admitted', last)
  end
end
if #waiting > 0 then
  local words = {'XCLAIM', KEYS[at], ARGV[1], WAITS, '0', unpack(waiting)}
  words[#words + 1] = 'JUSTID'
  ask(unpack(words))
end
return {'', idle, taken}
