-- KEYS pools; ARGV pool, Unix ms.
-- Notes when the pool has held its lease, also on a full server: see take_lease.lua.
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
