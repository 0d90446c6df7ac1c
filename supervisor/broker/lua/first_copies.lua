-- KEYS replay stream; ARGV count.
-- Gives the first entries, each as {id, first field's name, its value}.
local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])
for at, entry in ipairs(entries) do
  entries[at] = {entry[1], entry[2][1], entry[2][2]}
end
return entries
