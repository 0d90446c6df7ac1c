-- KEYS stream, published rows, origins; ARGV for how long a key is kept at most, in ms, number of keys to forget, these,
-- then for each row its key, the number of its names and values, and these.
-- Stores the rows of an outbox, each once: its key stays in the sorted set (scored by time) until the relay knows that the
-- row is deleted. Gives how many were stored now.
-- XADD comes first: out of memory, read only or a wrong type then stop the script before anything was written.
-- include: call clock origin
local now, stored = now_ms(), 0
local at = 3 + ARGV[2]
while at <= #ARGV do
  if not redis.call('ZSCORE', KEYS[2], ARGV[at]) then
    local words = {'XADD', KEYS[1], '*'}
    for value = at + 2, at + 1 + ARGV[at + 1] do
      words[#words + 1] = ARGV[value]
    end
    local id = call(words)
    redis.call('ZADD', KEYS[2], now, ARGV[at])
    note_origin(KEYS[3], id, 'kind', 'outbox', 'row', ARGV[at])
    stored = stored + 1
  end
  at = at + 2 + ARGV[at + 1]
end
for forget = 3, 2 + ARGV[2] do
  redis.call('ZREM', KEYS[2], ARGV[forget])
end
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1], 'LIMIT', 0, 1000)
if #old > 0 then
  redis.call('ZREM', KEYS[2], unpack(old))
end
return stored
