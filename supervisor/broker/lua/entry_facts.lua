-- KEYS stream, retries, crashes; ARGV group, id, count.
-- What Redis holds of one entry for one group, read in one step. Gives {last delivered id or '', pending row or {},
-- retry record or '', crashes or '', number of unread entries up to and with the entry, up to `count`}.
-- include: xinfo
local last = ''
for _, group in ipairs(groups_of(KEYS[1])) do
  last = group.name == ARGV[1] and group['last-delivered-id'] or last
end
local pending, unread = {}, {}
if last ~= '' then
  pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1] or {}
  unread = redis.call('XRANGE', KEYS[1], '(' .. last, ARGV[2], 'COUNT', ARGV[3])
end
local retry = redis.call('HGET', KEYS[2], ARGV[2]) or ''
return {last, pending, retry, redis.call('HGET', KEYS[3], ARGV[2]) or '', #unread}
