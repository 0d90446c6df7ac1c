-- KEYS a hash of streams; ARGV stream, its value.
-- Removes the stream if its value is still this one.
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
