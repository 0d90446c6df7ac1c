-- KEYS stream; ARGV last delivered id, count.
-- Gives {first unread id or '', number of unread entries up to `count`}.
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
return {entries[1] and entries[1][1] or '', #entries}
