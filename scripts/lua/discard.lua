-- Settles tasks of one lane that are forgotten without a result: they expired, or were cancelled to be deleted.
-- EDGE active -> gone
-- KEYS[1] lane – stream that holds the entries
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] cancels – hash, lane letter and entry id to mark
-- KEYS[4] stats – hash, counters over all time
-- KEYS[5] day – hash, counters of this UTC day
-- ARGV[1] letter – lane letter of KEYS[1]
-- ARGV[2] done – channel prefix; the task id follows it
-- ARGV[3...] three per task: entry id, task id, counter (cancelled or expired)
-- RETURNS one word per task, separated by spaces: ok, lost
-- COST about 8 us a task; at most 500 tasks a call, held by the caller
local lane, index, cancels, stats, day = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local words, counted = {}, {}

for i = 3, #ARGV, 3 do
  local entry, id, field = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('XACK', lane, 'w', entry) == 1 then
    redis.call('XDEL', lane, entry)
    redis.call('HDEL', index, id)
    redis.call('HDEL', cancels, ARGV[1] .. entry)
    redis.pcall('PUBLISH', ARGV[2] .. id, 'deleted')
    counted[field] = (counted[field] or 0) + 1
    words[#words + 1] = 'ok'
  else
    words[#words + 1] = 'lost'
  end
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  if by > 0 and type(redis.pcall('HINCRBY', key, field, by)) == 'table' then redis.pcall('HSET', key, field, by) end
end
for field, by in pairs(counted) do
  count(stats, field, by)
  count(day, field, by)
end
redis.pcall('EXPIRE', day, 7776000)
return table.concat(words, ' ')
