-- Settles tasks of one lane that failed for good, expired or were cancelled; keeps them within the archive's limits.
-- EDGE active -> archived
-- KEYS[1] lane – stream that holds the entries
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] parked – hash, task id to lane, crashes and message
-- KEYS[4] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[5] cancels – hash, lane letter and entry id to mark
-- KEYS[6] stats – hash, counters over all time
-- KEYS[7] day – hash, counters of this UTC day
-- ARGV[1] done – channel prefix; the task id follows it
-- ARGV[2] size – most tasks the archive keeps; the oldest go first
-- ARGV[3] age – ms after which an archived task is dropped
-- ARGV[4] letter – lane letter of KEYS[1]
-- ARGV[5...] three per task: entry id, task id, parked value
-- RETURNS one word per task, separated by spaces: ok; lost; or cancelled: and the mark of a task that is to be settled as
--         that mark says instead (nothing was done)
-- COST about 12 us a task, and as much per task trimmed; at most 500 tasks and 1 MB a call, held by
--      the caller; trims at most 1,000 more than it adds
local lane, index, parked, archived, cancels, stats, day =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local size, age = tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local words, done, counted = {}, 0, {}
local marked = redis.call('EXISTS', cancels) == 1

for i = 5, #ARGV, 3 do
  local entry, id, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local reason = string.match(value, '^%a%d+!(%a+):')
  local mark = marked and redis.call('HGET', cancels, ARGV[4] .. entry)
  if mark and reason ~= 'cancelled' then
    words[#words + 1] = 'cancelled:' .. mark
  elseif redis.call('XACK', lane, 'w', entry) == 1 then
    redis.call('XDEL', lane, entry)
    redis.call('HDEL', index, id)
    redis.call('ZADD', archived, now, id)
    redis.call('HSET', parked, id, value)
    redis.pcall('PUBLISH', ARGV[1] .. id, 'archived')
    if mark then redis.call('HDEL', cancels, ARGV[4] .. entry) end
    done = done + 1
    if reason then counted[reason] = (counted[reason] or 0) + 1 end
    words[#words + 1] = 'ok'
  else
    words[#words + 1] = 'lost'
  end
end

-- The body of a task goes with its place in the archive.
local function drop(ids)
  if #ids == 0 then return end
  redis.call('ZREM', archived, unpack(ids))
  redis.call('HDEL', parked, unpack(ids))
end
drop(redis.call('ZRANGEBYSCORE', archived, '-inf', now - age, 'LIMIT', 0, 500))
local over = redis.call('ZCARD', archived) - size
if over > 0 then drop(redis.call('ZRANGE', archived, 0, math.min(over, 1000) - 1)) end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
-- What expired, was cancelled or cannot be read was no attempt that ended.
local attempts = counted.failed or 0
local cancelled, expired = counted.cancelled or 0, counted.expired or 0
for field, by in pairs({
  processed = attempts, failed = attempts, archived = done, cancelled = cancelled, expired = expired
}) do
  count(stats, field, by)
  count(day, field, by)
end
redis.pcall('EXPIRE', day, 7776000)
return table.concat(words, ' ')
