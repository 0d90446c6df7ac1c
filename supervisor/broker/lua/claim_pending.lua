-- KEYS stream; ARGV group, consumer, receiver, count, least idle ms, and since when, by now.lua, the consumer's owner is
-- known to be gone (0: not known).
-- Claims the consumer's first messages for the receiver without counting a delivery. Look and claim are one step, so two
-- keepers never claim the same message. What the consumer received after its owner was found to be gone stays: the owner
-- is back. Gives {found, claimed}.
-- include: clock
local idle_ms, gone_since_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
if gone_since_ms > 0 then
  idle_ms = math.max(idle_ms, now_ms() - gone_since_ms + 1)
end
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', idle_ms, '-', '+', ARGV[4], ARGV[2])
if #rows == 0 then
  return {0, 0}
end
local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], idle_ms}
for _, row in ipairs(rows) do
  claim[#claim + 1] = row[1]
end
claim[#claim + 1] = 'JUSTID'
return {#rows, #redis.call(unpack(claim))}
