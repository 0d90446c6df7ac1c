-- KEYS stream, replay stream, turns, released rows, keys of messages; ARGV group, interval in ms, count, least ms of
-- waiting.
-- Gives {number of waiting messages, some of them, some of the replay stream, rows to check: those whose turns were
-- released, and some at random}. Rows are looked at in pages: one page in each interval, whichever worker asks.
-- include: clock allow_full
allow_full(KEYS[3])
local waiting, pages = 0, {{}, {}}
local now = now_ms()
local due = now - tonumber(redis.call('HGET', KEYS[3], 'looked_ms') or 0) >= tonumber(ARGV[2])
if due then
  redis.call('HSET', KEYS[3], 'looked_ms', string.format('%.0f', now))
end
for at = 1, 2 do
  local summary = redis.pcall('XPENDING', KEYS[at], ARGV[1])
  local held = 0
  for _, row in ipairs(not summary.err and summary[4] or {}) do
    held = row[1] == WAITS and tonumber(row[2]) or held
  end
  waiting = waiting + held
  if due and held > 0 then
    local field = 'looked' .. at
    local from = redis.call('HGET', KEYS[3], field) or '-'
    local page = redis.call('XPENDING', KEYS[at], ARGV[1], 'IDLE', ARGV[4], from, '+', ARGV[3], WAITS)
    for _, row in ipairs(page) do
      pages[at][#pages[at] + 1] = redis.call('XRANGE', KEYS[at], row[1], row[1])[1]
    end
    redis.call('HSET', KEYS[3], field, #page == tonumber(ARGV[3]) and '(' .. page[#page][1] or '-')
  end
end
local rows = redis.call('SRANDMEMBER', KEYS[4], ARGV[3])

-- Whether a message was acked or deleted; where another program did it, what is noted about the message is left.
local function is_gone(name)
  local copy = string.match(name, '@(.+)$')
  local pending = redis.pcall('XPENDING', KEYS[copy and 2 or 1], ARGV[1], copy or name, copy or name, 1)
  if pending.err then
    return string.find(pending.err, 'NOGROUP', 1, true)
  end
  return #pending == 0
end
local noted = due and redis.call('HRANDFIELD', KEYS[3], ARGV[3], 'WITHVALUES') or {}
for number = 1, #noted, 2 do
  local field, name = noted[number], noted[number + 1]
  if string.sub(field, 1, 1) == ':' and (name == '+' or is_gone(name)) then
    rows[#rows + 1] = field
  end
end
for _, name in ipairs(due and redis.call('HRANDFIELD', KEYS[5], ARGV[3]) or {}) do
  if is_gone(name) then
    redis.call('HDEL', KEYS[5], name)
  end
end
return {waiting, pages[1], pages[2], rows}
