-- Returns what a reserved time becomes by a change of the rate: its distance from the change grows or shrinks as the
-- interval does. The change is `<interval> <old interval> <since when>` in us of the rates' clock.
local function changed(change, us)
  local interval, old, since = string.match(change, '^(%S+) (%S+) (%S+)$')
  since = tonumber(since)
  return us > since and since + (us - since) * interval / old or us
end
