-- KEYS emits; ARGV Unix ms, most streams, seconds until it ends, then streams.
-- Notes the streams to which a handler publishes. Where that fails, only `explain` knows less.
for at = 4, #ARGV do
  redis.pcall('ZADD', KEYS[1], ARGV[1], ARGV[at])
end
redis.pcall('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[2] - 1)
redis.pcall('EXPIRE', KEYS[1], ARGV[3])
