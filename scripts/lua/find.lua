-- Finds one task, whatever its state.
-- EDGE none
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
-- RETURNS {ready, place, fields}; {active, place, fields, consumer, idle in ms}; {state, time in ms, parked value} for
--         scheduled, retry, completed, archived; {missing}; {orphan} when the index or the body points nowhere
-- COST constant
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, id = KEYS[5], KEYS[6], ARGV[1]

local place = redis.call('HGET', index, id)
if place then
  local lane, entry = lanes[string.sub(place, 1, 1)], string.sub(place, 2)
  local found = redis.call('XRANGE', lane, entry, entry)[1]
  if not found then return {'orphan'} end
  local pending = redis.pcall('XPENDING', lane, 'w', entry, entry, 1)
  if pending.err or #pending == 0 then return {'ready', place, found[2]} end
  return {'active', place, found[2], pending[1][2], pending[1][3]}
end
local value = redis.call('HGET', parked, id)
if not value then return {'missing'} end
for k, state in ipairs({'scheduled', 'retry', 'completed', 'archived'}) do
  local score = redis.call('ZSCORE', KEYS[6 + k], id)
  if score then return {state, score, value} end
end
return {'orphan'}
