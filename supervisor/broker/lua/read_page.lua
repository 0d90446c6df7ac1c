-- KEYS stream; ARGV the bound to begin at, the bound to end at, count, bytes, 1: the newest first.
-- Gives {more, entries}: at most `count` entries and about `bytes`, but at least one entry where there is one; `more`
-- is 1 when others follow.
-- Redis counts entries and not bytes, and the next ones may be far larger than those before. So it reads few at once,
-- and only the last ones, up to four, may be read in vain.
local command = ARGV[5] == '1' and 'XREVRANGE' or 'XRANGE'
local from, count, left = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local rows, step = {}, 1
while true do
  if command == 'XRANGE' and from == '(18446744073709551615-18446744073709551615' then
    return {0, rows}  -- nothing comes after the highest id: Redis refuses the range
  end
  local found = redis.pcall(command, KEYS[1], from, ARGV[2], 'COUNT', step)
  if found.err then
    return found
  end
  local large = false
  for _, entry in ipairs(found) do
    local size = 0
    for _, text in ipairs(entry[2]) do
      size = size + #text
    end
    if #rows > 0 and (#rows == count or size > left) then
      return {1, rows}
    end
    rows[#rows + 1] = entry
    left = left - size
    large = large or size > 65536
  end
  if #found < step then
    return {0, rows}
  end
  from = '(' .. rows[#rows][1]
  step = (large or left <= 0) and 1 or 4
end
