-- KEYS stream, turns; ARGV group, the field that is the key or ''.
-- Notes the field, for those who explain whose turn it is. (Of a function, `keys.message_keys_key` has the keys.)
-- Gives '' when the record of what was admitted can be used; else removes it and gives the id up to which all was
-- delivered: what is pending up to there has to be given its places. A record beyond that id is one of a group that was
-- destroyed, or set back.
-- include: ids xinfo allow_full
allow_full(KEYS[2])
-- A value of more than 64 bytes makes it a hash table: many fields of a compact hash are found slowly.
redis.call('HSET', KEYS[2], 'field', ARGV[2], 'about',
  ':key -> the message that has its turn, or + when the sorted set of its row has it and those that wait')
local admitted = redis.call('HGET', KEYS[2], 'admitted')
for _, group in ipairs(groups_of(KEYS[1])) do
  local last = group['last-delivered-id']
  if group.name == ARGV[1] then
    if admitted and not below(last, admitted) then
      return ''
    end
    redis.call('HDEL', KEYS[2], 'admitted')
    return last
  end
end
return redis.error_reply('NOGROUP no group ' .. ARGV[1])
