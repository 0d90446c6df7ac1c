-- KEYS later; ARGV how many, by how many ms the clock is ahead.
-- Gives {ms until the next message is due or -1, the members that are due}; the next is after all that are due now.
-- include: clock
local now = now_ms() + ARGV[2]
local now_text = string.format('%.0f', now)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_text, 'LIMIT', 0, ARGV[1])
local after = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now_text, '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
return {after and math.ceil(math.min(tonumber(after) - now, 1e9)) or -1, due}
