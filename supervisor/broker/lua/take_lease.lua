-- KEYS lease; ARGV token, ttl ms.
-- Takes or renews the lease. Gives 1 when it is held with this token, 0 when another token holds it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
-- A full server refuses SET, unless the script has written before. Only a pool that lives makes room there.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
