-- KEYS stream, then hashes by message id (retries, crashes); ARGV max age in ms, max length (0: no limit), how many
-- entries to remove at most, then the groups that must exist.
-- Removes what every group has settled. Gives {removed, the group that holds back more or ''}; call it again while it
-- removes.
--
-- 1. Nothing at or above the floor goes: the lowest id that is pending or undelivered in any group. A stream without
--    groups, or without one that must exist, is left alone: to a group that is still to come, everything is unread.
-- 2. Decision and removal are one step: between them a group could be created at 0, set back, or get a message by
--    XCLAIM.
-- 3. Whole nodes first (MINID ~, LIMIT), so that a call is quick however much there is to remove. When no node can go,
--    what is due in the first one is counted and goes by MAXLEN: that is one node's work. An exact MINID is never used:
--    Redis 6.2.5 cuts the distance of an id from its node's first one to 32 bits, and removes entries that are 25 days
--    younger.
-- 4. For a length, LIMIT is the excess; no entry is read to find where to cut but those of that one node.
-- include: ids xinfo clock
local stream, age_ms, length, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function plus_one(digits)
  local head, nines = string.match('0' .. digits, '^(%d-)(9*)$')
  local more = string.sub(head, 1, -2) .. (string.sub(head, -1) + 1) .. string.rep('0', #nines)
  return string.match(more, '^0(%d+)$') or more
end

local HIGHEST = '18446744073709551615'
local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq ~= HIGHEST then
    return ms .. '-' .. plus_one(seq)
  end
  return ms == HIGHEST and id or plus_one(ms) .. '-0'
end

-- Removes whole nodes below the id, or else up to `most` entries below it.
local function trim_below(id, most)
  local removed = redis.call('XTRIM', stream, 'MINID', '~', id, 'LIMIT', most)
  if removed == 0 then
    local due = #redis.call('XRANGE', stream, '-', '(' .. id, 'COUNT', most)
    removed = due > 0 and redis.call('XTRIM', stream, 'MAXLEN', '=', redis.call('XLEN', stream) - due) or 0
  end
  return removed
end

local missing = {}
for at = 4, #ARGV do
  missing[ARGV[at]] = true
end
local floor, holder
for _, group in ipairs(groups_of(stream)) do
  local lowest = after(group['last-delivered-id'])
  if group.pending > 0 then
    local row = redis.call('XPENDING', stream, group.name, '-', '+', 1)[1]
    if not row or below(row[1], lowest) then
      lowest = row and row[1] or '0-0'
    end
  end
  if not floor or below(lowest, floor) then
    floor, holder = lowest, group.name
  end
  missing[group.name] = nil
end
if not floor or next(missing) or floor == '0-0' then
  return {0, ''}
end

local removed, oldest_kept = 0, '0-0'
if age_ms > 0 then
  oldest_kept = string.format('%.0f-0', math.max(0, now_ms() - age_ms))
  removed = trim_below(below(oldest_kept, floor) and oldest_kept or floor, limit)
end
local excess = length > 0 and redis.call('XLEN', stream) - length or 0
if excess > 0 and removed == 0 then
  removed = trim_below(floor, math.min(excess, limit))
end
if removed == 0 then
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  return {0, (excess > 0 or first and below(first[1], oldest_kept)) and holder or ''}
end

for at = 2, #KEYS do
  if redis.call('HLEN', KEYS[at]) <= 10000 then
    for _, id in ipairs(redis.call('HKEYS', KEYS[at])) do
      if string.match(id, '^%d+-%d+$') and below(id, floor) then
        redis.call('HDEL', KEYS[at], id)
      end
    end
  end
end
return {removed, ''}
