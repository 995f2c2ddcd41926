-- Deletes one task that is not running, with everything kept of it.
-- EDGE ready -> gone
-- EDGE scheduled -> gone
-- EDGE retry -> gone
-- EDGE completed -> gone
-- EDGE archived -> gone
-- KEYS[1] front – stream
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] index – hash, task id to lane letter and entry id
-- KEYS[6] parked – hash, task id to lane, crashes and message
-- KEYS[7] scheduled – sorted set, task id by due time in ms
-- KEYS[8] retry – sorted set
-- KEYS[9] completed – sorted set
-- KEYS[10] archived – sorted set
-- ARGV[1] task id
-- RETURNS a word: ok, missing, active (refused: a worker holds it)
-- COST constant
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, id = KEYS[5], KEYS[6], ARGV[1]

local place = redis.call('HGET', index, id)
if place then
  local lane, entry = lanes[string.sub(place, 1, 1)], string.sub(place, 2)
  local pending = redis.pcall('XPENDING', lane, 'w', entry, entry, 1)
  if not pending.err and #pending > 0 then return 'active' end
  redis.call('XDEL', lane, entry)
  redis.call('HDEL', index, id)
  return 'ok'
end
for k = 7, 10 do redis.call('ZREM', KEYS[k], id) end
if redis.call('HDEL', parked, id) == 1 then return 'ok' end
return 'missing'
