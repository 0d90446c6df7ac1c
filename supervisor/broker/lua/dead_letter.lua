-- KEYS stream, retries, crashes, dead letters[, replay stream]; ARGV group, id, then the letter's names and values.
-- Writes the dead letter, then settles the message. Does nothing for a message that is no longer pending: it was
-- settled elsewhere, or its group is gone. Gives the letter's id, or nil.
-- include: settle call
local pending, failure = is_pending(ARGV[1], ARGV[2])
if not pending then
  return failure or false
end
local words = {'XADD', KEYS[4], '*'}
for at = 3, #ARGV do
  words[at + 1] = ARGV[at]
end
local letter = call(words)
settle(ARGV[1], KEYS[5], ARGV[2])
return letter
