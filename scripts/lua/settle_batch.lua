-- Settles a batch that succeeded without some of its members, and archives those by themselves: each is a task again.
-- EDGE active -> gone
-- EDGE active -> completed
-- EDGE active -> archived
-- KEYS[1] lane – stream that holds the entry
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] parked – hash, task id to lane, crashes and message
-- KEYS[4] completed – sorted set, task id by the time in ms at which its retention ends
-- KEYS[5] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[6] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[7] stats – hash, counters over all time
-- KEYS[8] day – hash, counters of this UTC day
-- ARGV[1] done – channel prefix; the task id follows it
-- ARGV[2] entry id of the batch
-- ARGV[3] task id of the batch
-- ARGV[4] retention – ms, 0 for a batch that is not kept
-- ARGV[5] parked value of the batch, empty when it is not kept
-- ARGV[6...] two per member set aside: task id, parked value
-- RETURNS a word: ok, lost
-- COST about 8 us a member set aside; at most 500 members and 1 MB a call, held by the caller
local lane, index, parked, completed, archived, grouped, stats, day =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local entry, batch, retention = ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if redis.call('XACK', lane, 'w', entry) == 0 then return 'lost' end
redis.call('XDEL', lane, entry)
redis.call('HDEL', index, batch)
local expired = 0
for i = 6, #ARGV, 2 do
  local id = ARGV[i]
  redis.call('ZADD', archived, now, id)
  redis.call('HSET', parked, id, ARGV[i + 1])
  if string.find(ARGV[i + 1], '^%a%d+!expired:') then expired = expired + 1 end
  redis.call('HDEL', grouped, id)
  redis.pcall('PUBLISH', ARGV[1] .. id, 'archived')
end
if retention > 0 then
  redis.call('ZADD', completed, now + retention, batch)
  redis.call('HSET', parked, batch, ARGV[5])
  redis.pcall('PUBLISH', ARGV[1] .. batch, 'completed')
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
for field, by in pairs({processed = 1, archived = (#ARGV - 5) / 2, expired = expired}) do
  count(stats, field, by)
  count(day, field, by)
end
redis.pcall('EXPIRE', day, 7776000)
return 'ok'
