-- KEYS replay stream, its retries, its crashes, its isolation markers; ARGV group, consumer.
-- Deletes a consumer of the replay stream that has nothing left to do. Gives `held` or `unread` when there is something
-- to do after all, `gone` when the stream or the group is missing, else `left`.
-- include: xinfo replay_stream
if not member then
  return 'gone'
end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 'held'
end
if count_unread(1) > 0 then
  return 'unread'
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
remove_if_done()
return 'left'
