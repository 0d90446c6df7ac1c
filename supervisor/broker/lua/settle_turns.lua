-- KEYS stream, replay stream, turns, row of the group, retries, crashes; ARGV group, consumer, turns per key, turns of the
-- group, 1 or 2 for the replay stream, then the names of the messages, then for each the field of its key, or ''.
-- Acks messages; the consumer takes over the next ones of their rows. Gives {number of acked messages, what was taken}.
-- include: turns
local args, at, count = ARGV, tonumber(ARGV[5]), (#ARGV - 5) / 2
local entries = {unpack(args, 6, 5 + count)}
for number = 1, at == 2 and count or 0 do
  local _, _, copy = member_of(entries[number])
  entries[number] = copy
end
local acked = ask('XACK', KEYS[at], ARGV[1], unpack(entries))
if ask('EXISTS', KEYS[5], KEYS[6]) > 0 then -- there is seldom such a record
  ask('HDEL', KEYS[5], unpack(entries))
  ask('HDEL', KEYS[6], unpack(entries))
end
if at == 2 then
  ask('XDEL', KEYS[2], unpack(entries))
end
local held = ask('HMGET', KEYS[3], unpack(args, 6 + count))
local words, used, rows, touched, members = {'HDEL', KEYS[3]}, 2, {}, {}, {'ZREM', KEYS[4]}
for number = 1, count do
  local name, field, holder = args[5 + number], args[5 + count + number], held[number]
  if holder == name then -- nothing waits for it
    used = used + 1
    words[used] = field
  end
  if holder == ROW or per_group > 0 then
    local member = member_of(name)
    if holder == ROW then
      local row = rows[field] or {'ZREM', KEYS[4] .. field}
      rows[field], touched[field] = row, true
      row[#row + 1] = member
    end
    members[#members + 1] = member
  end
end
if used > 2 then
  ask(unpack(words))
end
for _, row in pairs(rows) do
  ask(unpack(row))
end
if per_group > 0 and #members > 2 then
  ask(unpack(members))
end
give_all(touched)
return {acked, taken}
