"""The Lua scripts of replays: putting a message back, and the end of the stream of copies.

A message whose entry is still in the stream is made pending again. Of one whose entry was trimmed a copy goes
to the group's own replay stream: its first field says of which message, the others are the message's, byte for
byte. A copy is removed when it is settled, and the stream when nobody reads it any more and nothing is in it.
"""

from __future__ import annotations

from supervisor.broker.scripts import Script
from supervisor.core.copies import ORIGIN, ORIGIN_OF_JSON
from supervisor.core.letter import FIELD_PREFIX, FIELDS_JSON

#: KEYS stream, dead, retries, crashes, replay stream; ARGV group, letter id, message id, consumer. Puts the message
#: back to its group as if it had never been tried: `consumer` has it pending (FORCE: it was acked), or a copy is made.
#: One that is pending again (its group was made anew) is taken from nobody.
REPLAY = Script(
    f"""
local letter = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])[1]
if not letter then
  return 'gone'
end
local function failed(reply, word)
  return type(reply) == 'table' and reply.err and not string.find(reply.err, word, 1, true)
end
if #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) > 0 then
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
  if failed(pending, 'NOGROUP') then
    return pending
  elseif pending.err then
    return 'no-group'
  elseif #pending > 0 then
    return 'pending'
  end
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, ARGV[3], 'FORCE', 'JUSTID')
else
  local copy = {{'{ORIGIN}', ARGV[3]}}
  for at = 1, #letter[2], 2 do
    local name, value = letter[2][at], letter[2][at + 1]
    if string.sub(name, 1, {len(FIELD_PREFIX)}) == '{FIELD_PREFIX.decode()}' then
      copy[#copy + 1] = string.sub(name, {len(FIELD_PREFIX) + 1})
      copy[#copy + 1] = value
    elseif name == '{FIELDS_JSON.decode()}' then
      copy[1] = '{ORIGIN_OF_JSON}'
      copy[#copy + 1] = name
      copy[#copy + 1] = value
    end
  end
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[5], ARGV[1], '0', 'MKSTREAM')
  if failed(made, 'BUSYGROUP') then
    return made
  end
  redis.call('XADD', KEYS[5], '*', unpack(copy))
end
redis.call('HDEL', KEYS[3], ARGV[3])
redis.call('HDEL', KEYS[4], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[2])
return 'replayed'
"""
)

#: KEYS replay stream, and what is kept beside it; ARGV group. What the two below begin with.
_MEMBER = """
local member
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, flat in ipairs(groups) do
  local one = {}
  for at = 1, #flat, 2 do
    one[flat[at]] = flat[at + 1]
  end
  if one['name'] == ARGV[1] then
    member = one
  end
end
local function unread(count)
  local last = member and member['last-delivered-id'] or '0-0'
  return #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', count)
end
local function remove_if_done()
  if redis.call('XLEN', KEYS[1]) == 0 and #redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]) == 0 then
    return redis.call('DEL', unpack(KEYS))
  end
  return 0
end
"""

#: KEYS replay stream, its retries, its crashes, its marks; ARGV group, consumer. The consumer is done with copies and
#: leaves: `held` or `unread` when there is something to do after all, `gone` when stream or group are, else `left`.
LEAVE_COPIES = Script(
    _MEMBER
    + """
if not member then
  return 'gone'
end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 'held'
end
if unread(1) > 0 then
  return 'unread'
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
remove_if_done()
return 'left'
"""
)

#: KEYS replay stream, its retries, its crashes, its marks; ARGV group, count. How many copies nobody has read, up to
#: `count`; removes the stream when there is nothing and nobody.
UNREAD_COPIES = Script(
    _MEMBER
    + """
local found = unread(ARGV[2])
if member and found == 0 then
  remove_if_done()
end
return found
"""
)
