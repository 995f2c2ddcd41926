-- Looks for bodies of tasks in no lane that no set knows, and so nothing would ever touch: kept, in the archive.
-- EDGE lost -> archived
-- EDGE lost -> aggregating
-- KEYS[1] parked – hash, task id to lane, crashes and message
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] scheduled – sorted set, task id by due time in ms
-- KEYS[4] retry – sorted set
-- KEYS[5] completed – sorted set
-- KEYS[6] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[7] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[8] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[9] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[10] stats – hash, counters over all time
-- KEYS[11] day – hash, counters of this UTC day
-- ARGV[1] cursor – where to go on, 0 to begin
-- ARGV[2] limit – about how many bodies to look at
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: all are searched); 0; members put back into
--         their groups, and bodies dropped whose task is in a lane; bodies archived
-- COST about 6 us a body, and what copying it takes
local parked, index, archived = KEYS[1], KEYS[2], KEYS[6]
local aggregating, groups, grouped, stats, day = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local cursor, limit = ARGV[1], ARGV[2]
local sets = {KEYS[3], KEYS[4], KEYS[5], archived}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local repaired, quarantined = 0, 0

local function in_a_set(id)
  for _, set in ipairs(sets) do
    if redis.call('ZSCORE', set, id) then return true end
  end
  return false
end

-- A member of a group is among those that wait; when its place there is lost, it gets it again.
local function in_a_group(id)
  local record = redis.call('HGET', grouped, id)
  local arrival, group = string.match(record or '', '^(%d+) %d+,%d+,%d+,(.*)$')
  if not group or tonumber(arrival) == 0 then return false end
  local member = group .. '\0' .. arrival .. '\0' .. id
  local lost = not redis.call('ZSCORE', aggregating, member)
  if lost then redis.call('ZADD', aggregating, 0, member) end
  if redis.call('ZADD', groups, 'NX', now, group) == 1 or lost then repaired = repaired + 1 end
  return true
end

local page = redis.call('HSCAN', parked, cursor, 'COUNT', limit)
for i = 1, #page[2], 2 do
  local id, value = page[2][i], page[2][i + 1]
  if not in_a_set(id) and not in_a_group(id) then
    if redis.call('HEXISTS', index, id) == 1 then
      redis.call('HDEL', parked, id)
      repaired = repaired + 1
    else
      local colon = string.find(value, ':', 1, true)
      local slip = colon and string.match(string.sub(value, 1, colon - 1), '^%a%d+')
      local message = slip and string.sub(value, colon + 1) or value
      redis.call('ZADD', archived, now, id)
      redis.call('HSET', parked, id, (slip or 'n0') .. '!orphaned:' .. message)
      quarantined = quarantined + 1
    end
  end
end

local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if repaired + quarantined > 0 then
  for field, by in pairs({repaired = repaired, quarantined = quarantined}) do
    count(stats, field, by)
    count(day, field, by)
  end
  redis.pcall('EXPIRE', day, 7776000)
end
return {page[1] == '0' and '' or page[1], 0, repaired, quarantined}
