-- KEYS stream; ARGV group, consumer[, least idle ms of one that may be alive].
-- Deletes a consumer. Gives -1 when it stays because it holds pending messages, -2 because it was active lately.
-- include: xinfo
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return -1
end
for _, consumer in ipairs(ARGV[3] and rows_of(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) or {}) do
  if consumer.name == ARGV[2] and consumer.idle < tonumber(ARGV[3]) then
    return -2
  end
end
-- Before Redis 7, a full server refuses XGROUP, unless the script has written before. No message has this id.
redis.call('XACK', KEYS[1], ARGV[1], '0-0')
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
