-- KEYS stream, origins; ARGV name of the schedule, then the names and values of its message.
-- Publishes a schedule's message beside its ticks; gives its id.
-- include: origin
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
note_origin(KEYS[2], id, 'kind', 'schedule', 'schedule', ARGV[1])
return id
