-- The flat names and values of XINFO's rows as tables.
local function rows_of(reply)
  local rows = {}
  for at, flat in ipairs(reply) do
    rows[at] = {}
    for name = 1, #flat, 2 do
      rows[at][flat[name]] = flat[name + 1]
    end
  end
  return rows
end
-- The groups of a stream; none when the stream does not exist.
local function groups_of(stream)
  return redis.call('EXISTS', stream) == 1 and rows_of(redis.call('XINFO', 'GROUPS', stream)) or {}
end
