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
-- KEYS[11] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[12] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[13] progress – hash, task id to what its handler said last
-- ARGV[1] task id
-- RETURNS {found, progress}: progress = what the handler said last, after the time in ms, or empty; found =
--         {ready, place, fields}; {active, place, fields, consumer, idle in ms}; {state, time in ms, parked value} for
--         scheduled, retry, completed, archived, and for aggregating, where the time is that at which its group becomes
--         a batch; scheduled and aggregating end with the group, if there is one; {batch, id, one of these} for a task
--         that went into a batch; {missing}; {orphan} when the index or the body points nowhere
-- COST constant
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, groups, grouped, progress = KEYS[5], KEYS[6], KEYS[11], KEYS[12], KEYS[13]

local function group_of(id)
  return string.match(redis.call('HGET', grouped, id) or '', '^%d+ %d+,%d+,%d+,(.*)$')
end

local function look(id)
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
  if not value then return nil end
  for k, state in ipairs({'scheduled', 'retry', 'completed', 'archived'}) do
    local score = redis.call('ZSCORE', KEYS[6 + k], id)
    if score then return {state, score, value, state == 'scheduled' and group_of(id) or nil} end
  end
  local group = group_of(id)
  if not group then return {'orphan'} end
  return {'aggregating', redis.call('ZSCORE', groups, group) or '0', value, group}
end

local id = ARGV[1]
local found = look(id)
if not found then
  local batch = string.match(redis.call('HGET', grouped, id) or '', '^=(.*)$')
  found = batch and look(batch)
  if found then id, found = batch, {'batch', batch, found} else found = {'missing'} end
end
return {found, redis.call('HGET', progress, id) or ''}
