-- Notes what published an entry, under the entry's id in a stream of its own; the rest are names and values. That stream
-- keeps the last 10,000 and ends a week after the last one. Where it fails, only `explain` knows less.
local function note_origin(origins, entry, ...)
  redis.pcall('XADD', origins, 'MAXLEN', '~', 10000, entry, ...)
  redis.pcall('EXPIRE', origins, 604800)
end
