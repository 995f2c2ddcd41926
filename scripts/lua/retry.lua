-- Settles tasks of one lane whose attempt ended and that are to be tried again later.
-- EDGE active -> retry
-- KEYS[1] lane – stream that holds the entries
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] parked – hash, task id to lane, crashes and message
-- KEYS[4] retry – sorted set, task id by due time in ms
-- KEYS[5] cancels – hash, lane letter and entry id to mark
-- KEYS[6] stats – hash, counters over all time
-- KEYS[7] day – hash, counters of this UTC day
-- ARGV[1] hints – channel
-- ARGV[2] letter – lane letter of KEYS[1]
-- ARGV[3...] five per task: entry id, task id, delay in ms, why (1 a failure, 0 none, c a cancel), parked value
-- RETURNS one word per task, separated by spaces: ok; lost; or cancelled: and the mark of a task that is to be settled as
--         that mark says instead (nothing was done)
-- COST about 10 us a task; at most 500 tasks and 1 MB a call, held by the caller
local lane, index, parked, retry, cancels, stats, day =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local words, whys, earliest = {}, {['1'] = 0, ['0'] = 0, c = 0}, nil
local marked = redis.call('EXISTS', cancels) == 1

for i = 3, #ARGV, 5 do
  local entry, id, due, why, value = ARGV[i], ARGV[i + 1], now + tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  local mark = marked and redis.call('HGET', cancels, ARGV[2] .. entry)
  if mark and why ~= 'c' then
    words[#words + 1] = 'cancelled:' .. mark
  elseif redis.call('XACK', lane, 'w', entry) == 1 then
    redis.call('XDEL', lane, entry)
    redis.call('HDEL', index, id)
    redis.call('ZADD', retry, due, id)
    redis.call('HSET', parked, id, value)
    if mark then redis.call('HDEL', cancels, ARGV[2] .. entry) end
    whys[why] = whys[why] + 1
    if not earliest or due < earliest then earliest = due end
    words[#words + 1] = 'ok'
  else
    words[#words + 1] = 'lost'
  end
end

if earliest then
  local head = redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')
  if tonumber(head[2]) == earliest then redis.pcall('PUBLISH', ARGV[1], 'due') end
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
for field, by in pairs({processed = whys['1'], failed = whys['1'], cancelled = whys.c}) do
  count(stats, field, by)
  count(day, field, by)
end
redis.pcall('EXPIRE', day, 7776000)
return table.concat(words, ' ')
