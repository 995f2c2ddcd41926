-- Settles tasks of one lane that succeeded and are kept, with their results, for their retention.
-- EDGE active -> completed
-- KEYS[1] lane – stream that holds the entries
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] parked – hash, task id to lane, crashes and message
-- KEYS[4] completed – sorted set, task id by the time in ms at which its retention ends
-- KEYS[5] stats – hash, counters over all time
-- KEYS[6] day – hash, counters of this UTC day
-- ARGV[1] done – channel prefix; the task id follows it
-- ARGV[2...] four per task: entry id, task id, retention in ms, parked value
-- RETURNS one word per task, separated by spaces: ok, lost
-- COST about 10 us a task; at most 500 tasks and 1 MB a call, held by the caller
local lane, index, parked, completed, stats, day = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local words, done = {}, 0

for i = 2, #ARGV, 4 do
  local entry, id, retention, value = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if redis.call('XACK', lane, 'w', entry) == 1 then
    redis.call('XDEL', lane, entry)
    redis.call('HDEL', index, id)
    redis.call('ZADD', completed, now + retention, id)
    redis.call('HSET', parked, id, value)
    redis.pcall('PUBLISH', ARGV[1] .. id, 'completed')
    done = done + 1
    words[#words + 1] = 'ok'
  else
    words[#words + 1] = 'lost'
  end
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
count(stats, 'processed', done)
count(day, 'processed', done)
redis.pcall('EXPIRE', day, 7776000)
return table.concat(words, ' ')
