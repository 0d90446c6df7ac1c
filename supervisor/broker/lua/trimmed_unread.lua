-- KEYS stream, the group's record of lost entries, a key that is not used; ARGV group, '1' to keep the record up to date.
-- Counts the entries that were removed from the stream before the group read them. Gives that number, or -1 when the
-- server can't tell (before Redis 7.0).
-- The record has `count`, `upto` (the ordinal up to which removed entries were looked at), `added` (how many entries the
-- stream had ever had), `before` (the count of an earlier stream of this name) and `ordinal`: whether `entries-read` is
-- the ordinal of the last delivered entry on this server, or the number of delivered ones.
-- include: xinfo
if redis.call('EXISTS', KEYS[1]) == 0 then
  return tonumber(redis.call('HGET', KEYS[2], 'count') or 0)
end
local info = rows_of({redis.call('XINFO', 'STREAM', KEYS[1])})[1]
local added = info['entries-added']
if not added then
  return -1
end
local last, read
for _, group in ipairs(groups_of(KEYS[1])) do
  if group.name == ARGV[1] then
    last, read = group['last-delivered-id'], group['entries-read']
  end
end
local function before(one, other)
  local ms, seq = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(seq) < tonumber(other_seq))
end
-- Removes one entry unread from a stream of its own, and looks.
local function is_ordinal()
  local key = KEYS[3]
  redis.call('DEL', key)
  redis.call('XGROUP', 'CREATE', key, 'g', '0', 'MKSTREAM')
  redis.call('XADD', key, '1-0', 'n', '1')
  redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', 1, 'STREAMS', key, '>')
  redis.call('XADD', key, '2-0', 'n', '1')
  redis.call('XADD', key, 'MAXLEN', '=', 1, '3-0', 'n', '1')
  redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', 1, 'STREAMS', key, '>')
  local found = groups_of(key)[1]['entries-read']
  redis.call('DEL', key)
  return found == 3
end
local kept = redis.call('HMGET', KEYS[2], 'count', 'upto', 'ordinal', 'added', 'before')
local count, upto, ordinal = tonumber(kept[1] or 0), tonumber(kept[2] or -1), kept[3]
local earlier = tonumber(kept[5] or 0)
if added < tonumber(kept[4] or 0) then -- the stream was deleted, and this is another one
  upto, earlier = 0, count
end
if not ordinal and ARGV[2] == '1' then
  ordinal = is_ordinal() and '1' or '0'
end
local first = info['first-entry'] and info['first-entry'][1]
local deleted_inside = first and info['max-deleted-entry-id'] and before(first, info['max-deleted-entry-id'])
if not last or deleted_inside then
  return count
end
local removed = added - info['length']
local unread = first and before(last, first) or (not first and before(last, info['last-generated-id']))
if upto < 0 then -- what was removed before anybody looked counts only where the group had begun
  upto = read and math.min(read, removed) or removed
end
if unread and (read or last == '0-0') then
  if ordinal == '0' and read then
    count = math.max(count, earlier + removed - read)
  else
    count = count + math.max(0, removed - math.max(upto, read or 0))
  end
elseif not unread and ordinal == '0' and read and not before(last, info['last-generated-id']) then
  count = math.max(count, earlier + added - read)
end
if ARGV[2] == '1' then
  redis.call('HSET', KEYS[2], 'count', count, 'upto', math.max(upto, removed), 'ordinal', ordinal,
    'added', added, 'before', earlier)
end
return count
