-- KEYS lease; ARGV token.
-- Gives the lease up if it is held with this token.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
