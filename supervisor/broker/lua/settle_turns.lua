-- KEYS stream, replay stream, turns, row of the group, retries, crashes, then the rows of keys; ARGV group, consumer,
-- turns per key, turns of the group, 1 or 2 for the replay stream, then for each message its name and the number in KEYS
-- of its row, or 0.
-- Acks messages; the consumer takes over the next ones of their rows. Gives {number of acked messages, what was taken}.
-- include: turns
local at = tonumber(ARGV[5])
local entries, members, touched = {}, {}, {}
for number = 6, #ARGV, 2 do
  local count = #entries + 1
  local member, _, entry = member_of(ARGV[number])
  members[count], entries[count] = member, entry
end
local acked = ask('XACK', KEYS[at], ARGV[1], unpack(entries))
for number = 5, 6 do -- there is seldom such a record
  if ask('EXISTS', KEYS[number]) == 1 then
    ask('HDEL', KEYS[number], unpack(entries))
  end
end
if at == 2 then
  ask('XDEL', KEYS[2], unpack(entries))
end
for number, member in ipairs(members) do
  local row = KEYS[tonumber(ARGV[4 + 2 * number + 1])]
  leave(member, row)
  if row then
    touched[row] = true
  end
end
give_all(touched, take)
return {acked, taken}
