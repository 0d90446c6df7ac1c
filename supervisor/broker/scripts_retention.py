"""The Lua script of retention: what is trimmed, and below which id, is decided on the server in one step.

Between a look at the groups and a trim a group may be made at 0, set back, or get a message back by a
replay; so both are one script. Ids are compared as text: their parts have more digits than Lua's numbers.
"""

from __future__ import annotations

from supervisor.broker.scripts import Script

#: KEYS stream, then hashes of message ids (retries, crashes) to rid of what is settled; ARGV max age in ms and max
#: length (0: no limit), how many entries to remove at most, and the groups that must be there. Gives {removed, the
#: group that holds back more}; call it again while it removes.
#:
#: 1. Nothing at or above the floor goes: the lowest id, over all groups, that is pending or not yet delivered. A
#:    stream without a group, or without one of those that must be there, is left as it is: for a group that
#:    is yet to come, all is unread.
#: 2. Whole nodes first (MINID ~, LIMIT), so that a call is quick however much there is to remove. When no node
#:    can go, what is due in the first one goes by its exact id: that is one node's work.
#: 3. For a length, LIMIT is what is too much; no entry is read to find out where to cut but those of that one node.
TRIM = Script(
    """
local stream, age_ms, length, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function below(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  if ams == bms then
    ams, bms = aseq, bseq
  end
  if #ams ~= #bms then
    return #ams < #bms
  end
  return ams < bms
end

local function plus_one(digits)
  local head, nines = string.match('0' .. digits, '^(%d-)(9*)$')
  local more = string.sub(head, 1, -2) .. (string.sub(head, -1) + 1) .. string.rep('0', #nines)
  return string.match(more, '^0(%d+)$') or more
end

local MOST = '18446744073709551615'
local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq ~= MOST then
    return ms .. '-' .. plus_one(seq)
  end
  return ms == MOST and id or plus_one(ms) .. '-0'
end

local function trim(...)
  return redis.call('XTRIM', stream, 'MINID', ...)
end

local absent = {}
for at = 4, #ARGV do
  absent[ARGV[at]] = true
end
local floor, holder
for _, flat in ipairs(redis.call('EXISTS', stream) == 1 and redis.call('XINFO', 'GROUPS', stream) or {}) do
  local group = {}
  for at = 1, #flat, 2 do
    group[flat[at]] = flat[at + 1]
  end
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
  absent[group.name] = nil
end
if not floor or next(absent) or floor == '0-0' then
  return {0, ''}
end

local removed, old = 0, '0-0'
if age_ms > 0 then
  local now = redis.call('TIME')
  old = string.format('%.0f-0', math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - age_ms))
  local to = below(old, floor) and old or floor
  removed = trim('~', to, 'LIMIT', limit)
  if removed == 0 then
    removed = trim('=', to)
  end
end
local excess = length > 0 and redis.call('XLEN', stream) - length or 0
if excess > 0 and removed == 0 then
  local most = math.min(excess, limit)
  removed = trim('~', floor, 'LIMIT', most)
  if removed == 0 then
    local rows = redis.call('XRANGE', stream, '-', '(' .. floor, 'COUNT', most)
    if #rows > 0 then
      removed = trim('=', after(rows[#rows][1]))
    end
  end
end
if removed == 0 then
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  return {0, (excess > 0 or first and below(first[1], old)) and holder or ''}
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
"""
)
