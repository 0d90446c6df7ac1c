-- KEYS stream, retries, crashes, then for each stream to publish to its name and its origins; ARGV group, consumer, 1 when
-- the messages are copies in a replay stream (else 0), number of messages, their ids, the name of the stream, the ids of
-- the messages in it as one text, then for each entry to publish: the number of its key, the number of its names and
-- values, and these.
-- Publishes and acks, or does neither: nothing when none of the messages is pending with this consumer any more, because
-- they were settled before or belong to another one now. Gives the number of acked messages.
-- What XADD would fail at is looked up first: an error between two of them would leave the first one published.
-- include: settle call origin
local own = {}
local last = 4 + ARGV[4]
for at = 5, last do
  local pending, failure = is_pending(ARGV[1], ARGV[at], ARGV[2])
  if failure then
    return failure
  elseif pending then
    own[#own + 1] = ARGV[at]
  end
end
if #own == 0 then
  return 0
end
for at = 4, #KEYS, 2 do
  local length = redis.pcall('XLEN', KEYS[at])
  if type(length) == 'table' then
    return redis.error_reply(length.err .. ': ' .. KEYS[at])
  end
end
local stream, messages = ARGV[last + 1], ARGV[last + 2]
local at = last + 3
while at <= #ARGV do
  local key = tonumber(ARGV[at])
  local words = {'XADD', KEYS[key], '*'}
  for value = at + 2, at + 1 + ARGV[at + 1] do
    words[#words + 1] = ARGV[value]
  end
  local id = call(words)
  note_origin(KEYS[key + 1], id, 'kind', 'emit', 'stream', stream, 'group', ARGV[1], 'ids', messages)
  at = at + 2 + ARGV[at + 1]
end
local copies = ARGV[3] == '1' and KEYS[1]
local acked = 0
for first = 1, #own, 1000 do
  acked = acked + settle(ARGV[1], copies, unpack(own, first, math.min(first + 999, #own)))
end
return acked
