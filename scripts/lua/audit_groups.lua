-- Looks for members of groups whose body is gone, and for members or groups that would never become a batch.
-- EDGE aggregating -> gone
-- KEYS[1] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[2] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[3] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[4] parked – hash, task id to lane, crashes and message
-- KEYS[5] stats – hash, counters over all time
-- KEYS[6] day – hash, counters of this UTC day
-- ARGV[1] cursor – where to go on, 0 to begin; "g" and a number among the groups, which come after the members
-- ARGV[2] limit – about how many members to look at
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: all are searched); members dropped; groups and
--         records of members made again; 0
-- COST about 6 us a member
local aggregating, groups, grouped, parked, stats, day = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local vanished, repaired = 0, 0

local among_groups = string.match(ARGV[1], '^g(%d+)$')
if among_groups then
  -- A group without members is none: nothing is lost with it.
  local page = redis.call('ZSCAN', groups, among_groups, 'COUNT', ARGV[2])
  for i = 1, #page[2], 2 do
    local group = page[2][i]
    if redis.call('ZLEXCOUNT', aggregating, '[' .. group .. '\0', '(' .. group .. '\1') == 0 then
      redis.call('ZREM', groups, group)
    end
  end
  return {page[1] == '0' and '' or 'g' .. page[1], 0, 0, 0}
end

local page = redis.call('ZSCAN', aggregating, ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local name = page[2][i]
  local group, arrival, id = string.match(name, '^([^%z]*)%z(%d+)%z(.*)$')
  if not id or redis.call('HEXISTS', parked, id) == 0 then
    redis.call('ZREM', aggregating, name)
    local record = id and redis.call('HGET', grouped, id)
    -- A record of a batch says where the task went; any other is of a member without a body.
    if record and string.sub(record, 1, 1) ~= '=' then redis.call('HDEL', grouped, id) end
    vanished = vanished + 1
  else
    local record = redis.call('HGET', grouped, id)
    local known = record and string.match(record, '^(%d+) %d+,%d+,%d+,')
    if known ~= arrival then
      -- Its rule is lost; a group goes by the rule of who came last, and one without any is due at once.
      redis.call('HSET', grouped, id, arrival .. ' 0,0,0,' .. group)
    end
    if redis.call('ZADD', groups, 'NX', now, group) == 1 or known ~= arrival then repaired = repaired + 1 end
  end
end

local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if vanished + repaired > 0 then
  for field, by in pairs({vanished = vanished, repaired = repaired}) do
    count(stats, field, by)
    count(day, field, by)
  end
  redis.pcall('EXPIRE', day, 7776000)
end
return {page[1] == '0' and 'g0' or page[1], vanished, repaired, 0}
