-- KEYS replay stream, its retries, its crashes, its isolation markers; ARGV group, count.
-- Gives the number of copies that no consumer has read, up to `count`; removes a replay stream that holds nothing.
-- include: xinfo replay_stream
local unread = count_unread(ARGV[2])
if member and unread == 0 then
  remove_if_done()
end
return unread
