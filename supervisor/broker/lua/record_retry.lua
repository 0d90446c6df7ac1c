-- KEYS stream, retries; ARGV group, id, retry record.
-- Stores when a failed message is due. Does nothing for a message that is settled: the command may arrive late, when it
-- had to be sent again, and the group may be gone by then. Gives 1 when the record was stored, else 0.
-- include: settle
local pending, failure = is_pending(ARGV[1], ARGV[2])
if not pending then
  return failure or 0
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
