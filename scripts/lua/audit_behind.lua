-- Looks for tasks that wait behind a lock that knows nothing of them, and so would wait for ever: they are due now.
-- EDGE lost -> scheduled
-- KEYS[1] scheduled – sorted set, task id by due time in ms
-- KEYS[2] unique – hash, dedup key to whose lock it is; "+" and the key to who waits behind a keep-last lock
-- KEYS[3] owners – hash, task id to dedup key
-- KEYS[4] stats – hash, counters over all time
-- KEYS[5] day – hash, counters of this UTC day
-- ARGV[1] cursor – how many of them were found in order, 0 to begin
-- ARGV[2] limit – most tasks to look at, at most 500
-- ARGV[3] hints – channel
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: all are searched); 0; tasks that are due now; 0
-- COST about 3 us a task
local scheduled, unique, owners, stats, day = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local cursor, limit, hints = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
-- When a task is due that waits behind another one with its lock: not before that one has ended.
local NEVER = 9007199254740991
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local repaired = 0

local page = redis.call('ZRANGEBYSCORE', scheduled, NEVER, '+inf', 'LIMIT', cursor, limit)
for _, id in ipairs(page) do
  local key = redis.call('HGET', owners, id)
  local behind = key and redis.call('HGET', unique, '+' .. key)
  if not behind or string.match(behind, '^%a%d+ (.+)$') ~= id then
    redis.call('ZADD', scheduled, now, id)
    repaired = repaired + 1
  end
end

local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if repaired > 0 then
  redis.pcall('PUBLISH', hints, 'due')
  count(stats, 'repaired', repaired)
  count(day, 'repaired', repaired)
  redis.pcall('EXPIRE', day, 7776000)
end
return {#page == limit and string.format('%d', cursor + limit - repaired) or '', 0, repaired, 0}
