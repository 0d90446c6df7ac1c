-- KEYS later.
-- Gives {messages that wait, ms for which the first has been overdue or -1, malformed members that were due}.
-- include: clock
local malformed = redis.call('ZCOUNT', KEYS[1], '+inf', '+inf')
local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local late = first and now_ms() - tonumber(first) or -1
return {redis.call('ZCARD', KEYS[1]) - malformed, late < 0 and -1 or math.floor(math.min(late, 1e15)), malformed}
