-- Looks for ids of tasks in no lane whose body is gone: nothing can be run or shown of them, so they are dropped.
-- EDGE scheduled -> gone
-- EDGE retry -> gone
-- EDGE completed -> gone
-- EDGE archived -> gone
-- KEYS[1] scheduled – sorted set, task id by due time in ms
-- KEYS[2] retry – sorted set
-- KEYS[3] completed – sorted set
-- KEYS[4] archived – sorted set
-- KEYS[5] parked – hash, task id to lane, crashes and message
-- KEYS[6] stats – hash, counters over all time
-- KEYS[7] day – hash, counters of this UTC day
-- ARGV[1] which – 1 to 4, the set that is searched
-- ARGV[2] cursor – where to go on, 0 to begin
-- ARGV[3] limit – about how many ids to look at
-- RETURNS {cursor, vanished, repaired, quarantined}: where to go on (empty: the set is searched); ids dropped; 0; 0
-- COST about 2 us an id
local sets = {KEYS[1], KEYS[2], KEYS[3], KEYS[4]}
local parked, stats, day, set = KEYS[5], KEYS[6], KEYS[7], sets[tonumber(ARGV[1])]
local page = redis.call('ZSCAN', set, ARGV[2], 'COUNT', ARGV[3])
local vanished = 0
for i = 1, #page[2], 2 do
  if redis.call('HEXISTS', parked, page[2][i]) == 0 then
    redis.call('ZREM', set, page[2][i])
    vanished = vanished + 1
  end
end

local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
if vanished > 0 then
  count(stats, 'vanished', vanished)
  count(day, 'vanished', vanished)
  redis.pcall('EXPIRE', day, 7776000)
end
return {page[1] == '0' and '' or page[1], vanished, 0, 0}
