-- Whether id `a` is below id `b`. Ids are compared as text: their parts have more digits than Lua's numbers hold.
local function below(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  if ams == bms then
    ams, bms = aseq, bseq
  end
  if #ams ~= #bms then
    return #ams < #bms
  end
  return ams < bms
end
