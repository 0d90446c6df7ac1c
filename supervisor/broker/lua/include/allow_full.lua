-- Has a full Redis run a script that lets messages run, which frees memory in the end: for lack of memory it refuses only
-- what comes before a script's first write. HDEL needs no memory, and no field has an empty name.
local function allow_full(hash)
  redis.call('HDEL', hash, '')
end
